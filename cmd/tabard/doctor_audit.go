package main

import (
	"errors"
	"io/fs"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
)

// sinkLate is how far a sink may be behind before the doctor speaks of it.
const sinkLate = time.Minute

// trail says which sinks do not have what is in the trail.
func (d *doctor) trail() {
	behind, err := audit.Behind(d.cfg.Audit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.say("audit", resultWarn, "%s does not exist yet: `tabard serve` creates it", d.cfg.Audit.Dir)
		return
	case err != nil:
		d.say("audit", resultFail, "%s", err)
		return
	}
	late := false
	for _, b := range behind {
		if b.Records > 0 && time.Since(b.Since) > sinkLate {
			late = true
			d.say("audit", resultWarn, "sink %s lacks %s, the oldest of %s: the server's log says why, unless the server is stopped", b.Sink, count(int(b.Records), "record", "records"), b.Since.Format(time.RFC3339))
		}
	}
	if !late {
		d.say("audit", resultOK, "the trail in %s can be read; none of %s is late", d.cfg.Audit.Dir, count(len(behind), "sink", "sinks"))
	}
}
