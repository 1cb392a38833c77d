package testenv

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"
)

// container is what runs in the pods of a StubKubelet. It knows these commands:
//
//	echo WORD…    writes them
//	cat [FILE]    writes the file, or its input
//	err WORD…     writes them to stderr
//	exit N        ends so
//	size          writes the size of its terminal once it is told, as ROWS COLUMNS
//	tick          writes a line from time to time until nobody reads it
//	test -d DIR   says whether files lie below it
//	tar           c or x with f -, as kubectl cp runs it; /zeros/N is a file of N MiB
type container struct{ kubelet *StubKubelet }

// streams are what a command is connected to; each may be nil.
type streams struct {
	in       io.Reader
	out, err io.Writer
	resize   <-chan remotecommand.TerminalSize
}

// ExecInContainer implements remotecommand.Executor.
func (c container) ExecInContainer(_ context.Context, _, _, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c.run(cmd, streamsOf(in, out, errs, resize))
}

// AttachContainer implements remotecommand.Attacher: the container was started as cat, or
// as tick for who writes nothing.
func (c container) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	command := []string{"cat"}
	if in == nil {
		command = []string{"tick"}
	}
	return c.run(command, streamsOf(in, out, errs, resize))
}

// streamsOf puts something in place of streams that the client did not ask for.
func streamsOf(in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) streams {
	s := streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard, resize: resize}
	if in != nil {
		s.in = in
	}
	if out != nil {
		s.out = out
	}
	if errs != nil {
		s.err = errs
	}
	return s
}

func (c container) run(cmd []string, s streams) error {
	defer c.kubelet.begin(strings.Join(cmd, " "))()
	args := cmd[1:]
	switch cmd[0] {
	case "echo":
		fmt.Fprintln(s.out, strings.Join(args, " "))
	case "err":
		fmt.Fprintln(s.err, strings.Join(args, " "))
	case "cat":
		from := s.in
		if len(args) > 0 {
			from = bytes.NewReader(c.kubelet.File(args[0]))
		}
		_, err := io.Copy(s.out, from)
		return err
	case "exit":
		code, err := strconv.Atoi(strings.Join(args, ""))
		if err != nil {
			return err
		}
		return exitCode(code)
	case "size":
		return c.size(s)
	case "tick":
		return c.tick(s.out)
	case "test":
		return c.isDir(args[len(args)-1])
	case "tar":
		return c.tar(args, s)
	default:
		fmt.Fprintf(s.err, "%s: not found\n", cmd[0])
		return exitCode(127)
	}
	return nil
}

// exitCode is nil for 0, and what the streaming server takes for an exit code.
func exitCode(code int) error {
	if code == 0 {
		return nil
	}
	return exec.CodeExitError{Err: fmt.Errorf("exit %d", code), Code: code}
}

// size notes each size that it is told, until it has written the first.
func (c container) size(s streams) error {
	select {
	case size, ok := <-s.resize:
		if !ok {
			return errors.New("no terminal")
		}
		c.kubelet.mu.Lock()
		c.kubelet.sizes = append(c.kubelet.sizes, size)
		c.kubelet.mu.Unlock()
		_, err := fmt.Fprintf(s.out, "%d %d\n", size.Height, size.Width)
		return err
	case <-c.kubelet.ends.Done():
		return c.kubelet.ends.Err()
	}
}

func (c container) tick(out io.Writer) error {
	for i := 0; ; i++ {
		if _, err := fmt.Fprintf(out, "tick %d\n", i); err != nil {
			return nil // nobody reads it
		}
		select {
		case <-c.kubelet.ends.Done():
			return nil
		case <-time.After(kubeletLogGap):
		}
	}
}

func (c container) isDir(dir string) error {
	c.kubelet.mu.Lock()
	defer c.kubelet.mu.Unlock()
	for name := range c.kubelet.files {
		if strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/") {
			return nil
		}
	}
	return exitCode(1)
}

// tar packs one file to its output, or unpacks its input below -C.
func (c container) tar(args []string, s streams) error {
	if args[0] == "cf" {
		return c.pack(args[len(args)-1], s.out)
	}
	dir := "/"
	if i := slices.Index(args, "-C"); i >= 0 {
		dir = args[i+1]
	}
	for r := tar.NewReader(s.in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, s.in) // the end of the archive is padded
			return err
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		c.kubelet.SetFile(path.Join(dir, h.Name), b)
	}
}

func (c container) pack(name string, out io.Writer) error {
	content := c.kubelet.File(name)
	from, size := io.Reader(bytes.NewReader(content)), int64(len(content))
	if mib, ok := strings.CutPrefix(name, "/zeros/"); ok {
		n, err := strconv.ParseInt(mib, 10, 32)
		if err != nil {
			return err
		}
		size = n << 20
		from = io.LimitReader(zeros{}, size)
	} else if content == nil {
		return exitCode(2)
	}
	w := tar.NewWriter(out)
	if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o600, Size: size}); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, from, make([]byte, 32<<10)); err != nil {
		return err
	}
	return w.Close()
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
