package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// descriptor points at a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// content is what an index or a manifest points at.
type content struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// runtimeConfig is the image's configuration.
type runtimeConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Config       struct {
		User       string
		Entrypoint []string
		Cmd        []string
		Env        []string
		Labels     map[string]string
	} `json:"config"`
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// entry is a file in a tar file.
type entry struct {
	tar.Header
	content []byte
}

func untar(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	files := map[string]entry{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = entry{*h, b}
	}
}

// layout is a written image that is being read.
type layout struct {
	t     *testing.T
	files map[string]entry
}

func written(t *testing.T, img image) (layout, []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := img.write(&b); err != nil {
		t.Fatal(err)
	}
	return layout{t, untar(t, bytes.NewReader(b.Bytes()))}, b.Bytes()
}

// blob returns what d points at, once digest and size are right.
func (l layout) blob(d descriptor, mediaType string) []byte {
	l.t.Helper()
	e, ok := l.files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if !ok || digest(e.content) != d.Digest || len(e.content) != d.Size || d.MediaType != mediaType {
		l.t.Fatalf("%+v: there %v, %d bytes", d, ok, len(e.content))
	}
	return e.content
}

func parse(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

// platforms follows index.json down to the image of each platform.
func (l layout) platforms() (manifests []content, descriptors []descriptor) {
	var top, index content
	parse(l.t, l.files["index.json"].content, &top)
	if len(top.Manifests) != 1 {
		l.t.Fatalf("index.json: %+v", top)
	}
	parse(l.t, l.blob(top.Manifests[0], typeIndex), &index)
	for _, d := range index.Manifests {
		var m content
		parse(l.t, l.blob(d, typeManifest), &m)
		manifests = append(manifests, m)
	}
	return manifests, index.Manifests
}

// rootFS is the file system of the image with manifest m.
func (l layout) rootFS(m content) (runtimeConfig, map[string]entry) {
	l.t.Helper()
	var c runtimeConfig
	parse(l.t, l.blob(m.Config, typeConfig), &c)
	z, err := gzip.NewReader(bytes.NewReader(l.blob(m.Layers[0], typeLayer)))
	if err != nil {
		l.t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(m.Layers) != 1 || len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0] != digest(plain) {
		l.t.Errorf("layers %+v, diff IDs %v", m.Layers, c.RootFS.DiffIDs)
	}
	return c, untar(l.t, bytes.NewReader(plain))
}

func sample() image {
	return image{name: "localhost/tabard:v1", version: "v1", created: time.Unix(1700000000, 0).UTC(),
		platforms: []platform{{"linux", "amd64", []byte("for amd64")}, {"linux", "arm64", []byte("for arm64")}}}
}

func TestLayout(t *testing.T) {
	l, _ := written(t, sample())
	if got := string(l.files["oci-layout"].content); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}
	manifests, descriptors := l.platforms()
	for i, p := range sample().platforms {
		config, root := l.rootFS(manifests[i])
		if d := descriptors[i].Platform; d.OS != p.os || d.Architecture != p.arch || config.OS != p.os || config.Architecture != p.arch {
			t.Errorf("image %d is for %+v and %s/%s", i, d, config.OS, config.Architecture)
		}
		if got := root["usr/local/bin/tabard"]; !bytes.Equal(got.content, p.binary) || got.Mode != 0o755 || got.Uid != 0 {
			t.Errorf("the binary for %s: %+v", p.arch, got)
		}
		if got := root["var/lib/tabard/"]; got.Mode != 0o700 || got.Uid != user || got.Gid != user || got.Typeflag != tar.TypeDir {
			t.Errorf("the folder for state: %+v", got)
		}
		if len(root) != 9 {
			t.Errorf("%d files are in the image", len(root))
		}
		if c := config.Config; c.User != "65532:65532" || c.Labels["org.opencontainers.image.version"] != "v1" {
			t.Errorf("config: %+v", c)
		}
	}
}

// TestOlderDocker reads the image as docker load did before it knew layouts.
func TestOlderDocker(t *testing.T) {
	l, _ := written(t, sample())
	var list []struct {
		Config           string
		Layers, RepoTags []string
	}
	parse(t, l.files["manifest.json"].content, &list)
	manifests, _ := l.platforms()
	want := func(d descriptor) string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }
	if len(list) != 1 || list[0].Config != want(manifests[0].Config) || !slices.Equal(list[0].Layers, []string{want(manifests[0].Layers[0])}) ||
		!slices.Equal(list[0].RepoTags, []string{"localhost/tabard:v1"}) {
		t.Errorf("manifest.json: %+v", list)
	}
}

func TestSameSourcesSameBytes(t *testing.T) {
	_, a := written(t, sample())
	_, b := written(t, sample())
	if !bytes.Equal(a, b) {
		t.Error("two runs differ")
	}
	other := sample()
	other.platforms[1].binary = []byte("changed")
	if _, c := written(t, other); bytes.Equal(a, c) {
		t.Error("another binary gives the same image")
	}
}

func TestNoHalfImage(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, "taken"), sample()); err == nil {
		t.Error("a folder was overwritten")
	}
	if err := writeFile(filepath.Join(dir, "new", "image.tar"), sample()); err != nil {
		t.Error(err)
	}
	for _, glob := range []string{"*.new", "new/*.new"} {
		if left, _ := filepath.Glob(filepath.Join(dir, glob)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestWrongUse(t *testing.T) {
	for args, want := range map[string]string{
		"-platforms linux":           "is not OS/ARCH",
		"-platforms linux/imaginary": "build for linux/imaginary",
	} {
		err := run(append(strings.Fields(args), "-o", filepath.Join(t.TempDir(), "x")), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := creationTime("yesterday"); err == nil {
		t.Error("SOURCE_DATE_EPOCH=yesterday is taken")
	}
}
