// Fills the list below "who" as one types: people from the directories, local groups
// from here. Without it the field takes what is typed all the same.
(function () {
  'use strict'
  var input = document.getElementById('who')
  if (!input) return
  var list = document.getElementById('found')
  var said = document.getElementById('found-hint')
  var waiting, asking

  function kind () {
    var control = input.form.elements.kind // a select, or radio buttons
    return control.value
  }

  function show (found) {
    list.replaceChildren.apply(list, found.map(function (f) {
      var option = document.createElement('option')
      option.value = f.value
      option.label = f.label
      return option
    }))
  }

  function people (answer) {
    var all = answer.people || []
    return all.map(function (p) {
      var twice = all.filter(function (o) { return o.username === p.username }).length > 1
      return { value: twice ? p.sub : p.username, label: p.name + ' · ' + (twice ? p.username + ' · ' : '') + p.sub.split('.')[0] }
    })
  }

  function groups (answer) {
    return (answer.groups || []).map(function (g) { return { value: g.name, label: g.description || g.name } })
  }

  function ask () {
    var from = { person: [input.dataset.people, people], group: [input.dataset.groups, groups] }[kind()]
    var typed = input.value.trim()
    if (asking) asking.abort()
    if (!from || typed.length < 2) {
      said.textContent = ''
      return show([])
    }
    if (Array.prototype.some.call(list.options, function (o) { return o.value === typed })) return // it was picked
    asking = new AbortController()
    fetch(from[0] + '?limit=10&q=' + encodeURIComponent(typed), { signal: asking.signal, headers: { Accept: 'application/json' } })
      .then(function (r) { if (!r.ok) throw new Error(r.status); return r.json() })
      .then(function (answer) {
        var found = from[1](answer)
        show(found)
        said.textContent = found.length ? found.length + ' found, below the field.' : 'None found yet by this name.'
      })
      .catch(function (e) {
        if (e.name !== 'AbortError') said.textContent = 'Nothing can be looked up just now. Type the whole name.'
      })
  }

  input.addEventListener('input', function () {
    clearTimeout(waiting)
    waiting = setTimeout(ask, 200)
  })
  input.form.addEventListener('change', function (e) {
    if (e.target.name === 'kind') { show([]); said.textContent = '' }
  })
})()
