package web

import (
	"errors"
	"net/http"

	"github.com/tabard-id/tabard/idp"
)

// deviceForm is the page where the code of a device is typed (RFC 8628, section 3.3).
type deviceForm struct {
	Code          string
	Error, Detail string
}

// showDevice takes a code from verification_uri_complete into the form, and no
// further: whoever sends a link never skips the page that says what it lets in.
func (s *Site) showDevice(w http.ResponseWriter, r *http.Request, v visitor) error {
	return s.renderDevice(w, http.StatusOK, v, deviceForm{Code: r.URL.Query().Get("user_code")})
}

func (s *Site) renderDevice(w http.ResponseWriter, status int, v visitor, f deviceForm) error {
	return s.render(w, status, "device", s.pageFor(v, "", "Sign in a device", f))
}

// enterCode answers with the confirmation page, at the same address: it has no
// link of its own.
func (s *Site) enterCode(w http.ResponseWriter, r *http.Request, v visitor) error {
	code := r.PostForm.Get("user_code")
	waiting, err := s.idp.Device(r.Context(), code)
	if err != nil {
		return s.refuseCode(w, v, code, err)
	}
	return s.render(w, http.StatusOK, "deviceconfirm", s.pageFor(v, "", "Let a device in?", struct {
		idp.DeviceRequest
		Username string
	}{waiting, v.sess.Username}))
}

func (s *Site) decideDevice(w http.ResponseWriter, r *http.Request, v visitor) error {
	code, decision := r.PostForm.Get("user_code"), r.PostForm.Get("decision")
	if decision != "allow" && decision != "deny" {
		return errBadForm
	}
	if err := s.idp.DecideDevice(r.Context(), v.sess, code, decision == "allow"); err != nil {
		return s.refuseCode(w, v, code, err)
	}
	if decision == "deny" {
		return s.see(w, r, "/device/done?denied=1")
	}
	return s.see(w, r, "/device/done")
}

// refuseCode brings the form back for a code that is not good, and an error page
// for the rest.
func (s *Site) refuseCode(w http.ResponseWriter, v visitor, code string, err error) error {
	f := deviceForm{Code: code}
	switch {
	case errors.Is(err, idp.ErrExpired):
		f.Error, f.Detail = "No device waits with this code", "Check it against the device. A code is good once and for a few minutes: if it is older, start again on the device."
		return s.renderDevice(w, http.StatusUnprocessableEntity, v, f)
	case errors.Is(err, idp.ErrTooMany):
		said := explain(err)
		retryAfter(w, said)
		f.Error, f.Detail = said.Title, said.Detail
		return s.renderDevice(w, said.Status, v, f)
	}
	return err
}

// unconfirmed is where a reload of the confirmation ends up.
func (s *Site) unconfirmed(w http.ResponseWriter, r *http.Request, _ visitor) error {
	return s.see(w, r, "/device")
}

func (s *Site) deviceDone(w http.ResponseWriter, r *http.Request, v visitor) error {
	m := message{Heading: "The device is signed in", Text: "Go back to it: it goes on by itself within a few seconds. You can close this page.", Home: true}
	if r.URL.Query().Has("denied") {
		m = message{Heading: "The device was turned away", Text: "It was given nothing. If you did not start this yourself, somebody tried to sign in as you: tell whoever runs this server.", Home: true}
	}
	return s.render(w, http.StatusOK, "message", s.pageFor(v, "", m.Heading, m))
}
