// Everything works without this: it remembers a theme, shows the password on
// request, says when caps lock is on, and keeps a form from being sent twice.
(function () {
  'use strict'
  var root = document.documentElement
  try { root.dataset.theme = localStorage.getItem('theme') || '' } catch (e) {}

  function themeSwitch (button) {
    var dark = function () {
      return root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches
    }
    var label = function () { button.textContent = dark() ? 'Light theme' : 'Dark theme' }
    button.onclick = function () {
      root.dataset.theme = dark() ? 'light' : 'dark'
      try { localStorage.setItem('theme', root.dataset.theme) } catch (e) {}
      label()
    }
    label()
    button.hidden = false
  }

  function passwordField (input, reveal, caps) {
    reveal.hidden = false
    reveal.onclick = function () {
      var show = input.type === 'password'
      input.type = show ? 'text' : 'password'
      reveal.textContent = show ? 'Hide' : 'Show'
      input.focus()
    }
    input.form.addEventListener('submit', function () { input.type = 'password' })
    var check = function (e) {
      if (e.getModifierState) caps.textContent = e.getModifierState('CapsLock') ? 'Caps lock is on' : ''
    }
    input.addEventListener('keydown', check)
    input.addEventListener('keyup', check)
    input.addEventListener('blur', function () { caps.textContent = '' })
  }

  function sendOnce (form) {
    var sent = false
    form.addEventListener('submit', function (e) { if (sent) e.preventDefault(); sent = true })
    addEventListener('pageshow', function () { sent = false })
  }

  document.addEventListener('DOMContentLoaded', function () {
    var id = function (s) { return document.getElementById(s) }
    themeSwitch(id('theme'))
    if (id('reveal')) passwordField(id('password'), id('reveal'), id('caps'))
    document.querySelectorAll('form.once').forEach(sendOnce)
  })
})()
