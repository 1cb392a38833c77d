// Command image builds Tabard and writes it as a container image: an OCI image
// layout in a tar file, one image for each platform. It needs Go and no container
// engine, and the same sources give the same bytes.
//
// The image is from scratch: the static binary, two empty folders, no shell and
// no CA certificates. A directory whose certificate comes from a public authority
// therefore needs caFile, as one with its own authority does.
package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// user is the account in the image, not root: the number that other images from
// scratch use for "nonroot".
const user = 65532

// Media types of the OCI image specification 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// object is JSON whose keys are written in order, so that digests are stable.
type object map[string]any

// image is what is to be written.
type image struct {
	name      string // repository:tag
	version   string
	created   time.Time
	platforms []platform
}

// platform is one architecture of the image.
type platform struct {
	os, arch string
	binary   []byte
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("o", "bin/tabard.oci.tar", "file to write")
	name := flags.String("name", "localhost/tabard:dev", "name of the image, REPOSITORY:TAG")
	version := flags.String("version", "unknown", "version of Tabard")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64", "platforms, OS/ARCH with commas between")
	if err := flags.Parse(args); err != nil {
		return err
	}
	created, err := creationTime(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	img := image{name: *name, version: *version, created: created}
	for _, p := range strings.Split(*platforms, ",") {
		goos, arch, ok := strings.Cut(p, "/")
		if !ok {
			return fmt.Errorf("-platforms: %q is not OS/ARCH, such as linux/amd64", p)
		}
		binary, err := build(goos, arch, *version)
		if err != nil {
			return err
		}
		img.platforms = append(img.platforms, platform{goos, arch, binary})
	}
	if err := writeFile(*out, img); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s for %s is in %s\n", *name, *platforms, *out)
	return err
}

// creationTime is the image's date: SOURCE_DATE_EPOCH in seconds, as
// reproducible-builds.org has it, else 1970.
func creationTime(epoch string) (time.Time, error) {
	seconds, err := strconv.ParseInt(cmp.Or(epoch, "0"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is not a number of seconds", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// build compiles Tabard without cgo and returns the binary.
func build(goos, arch, version string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "tabard-image")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "tabard")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", file, "github.com/tabard-id/tabard/cmd/tabard")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build for %s/%s: %w\n%s", goos, arch, err, msg)
	}
	return os.ReadFile(file)
}

// writeFile writes the image to a file that appears whole or not at all.
func writeFile(path string, img image) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(img.write(f), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// write writes the image as a tar file: the OCI layout, and beside it the
// manifest.json of docker save for an older docker load, which reads no layout.
// That one names the first platform alone.
func (img image) write(w io.Writer) error {
	a := &archive{Writer: tar.NewWriter(w), time: img.created, seen: map[string]bool{}}
	a.file("oci-layout", object{"imageLayoutVersion": "1.0.0"})
	var manifests, loadable []object
	for _, p := range img.platforms {
		layer, diffID, err := p.layer(img.created)
		if err != nil {
			return err
		}
		config := a.blob(typeConfig, a.encode(img.config(p, diffID)))
		content := a.blob(typeLayer, layer)
		manifest := a.blob(typeManifest, a.encode(object{
			"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": []object{content}, "annotations": img.labels(),
		}))
		manifest["platform"] = object{"os": p.os, "architecture": p.arch}
		manifests = append(manifests, manifest)
		loadable = append(loadable, object{"Config": blobPath(config), "Layers": []string{blobPath(content)}, "RepoTags": []string{img.name}})
	}
	index := a.blob(typeIndex, a.encode(object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": manifests}))
	tag := img.name[strings.LastIndexByte(img.name, ':')+1:]
	index["annotations"] = object{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": img.name}
	a.file("index.json", object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []object{index}})
	a.file("manifest.json", loadable[:1])
	return errors.Join(a.err, a.Close())
}

// config says how the image runs on p.
func (img image) config(p platform, diffID string) object {
	created := img.created.Format(time.RFC3339)
	return object{
		"created": created, "os": p.os, "architecture": p.arch,
		"config": object{
			"User":         fmt.Sprintf("%d:%d", user, user),
			"Entrypoint":   []string{"/usr/local/bin/tabard"},
			"Cmd":          []string{"serve", "--config", "/etc/tabard/tabard.yaml"},
			"Env":          []string{"PATH=/usr/local/bin"},
			"ExposedPorts": object{"8443/tcp": object{}},
			"Volumes":      object{"/var/lib/tabard": object{}},
			"Labels":       img.labels(),
		},
		"rootfs":  object{"type": "layers", "diff_ids": []string{diffID}},
		"history": []object{{"created": created, "created_by": "tabard deploy/image"}},
	}
}

// labels are those that the OCI specification names.
func (img image) labels() object {
	return object{
		"org.opencontainers.image.title":       "tabard",
		"org.opencontainers.image.description": "OpenID Connect provider for Kubernetes over LDAP and Active Directory",
		"org.opencontainers.image.source":      "https://github.com/tabard-id/tabard",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     img.version,
		"org.opencontainers.image.created":     img.created.Format(time.RFC3339),
	}
}

// layer is the file system as a compressed tar file, and the digest of what is
// compressed. A new volume takes over the owner and mode of /var/lib/tabard.
func (p platform) layer(created time.Time) (compressed []byte, diffID string, err error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, h := range []tar.Header{
		{Name: "etc/", Mode: 0o755}, {Name: "etc/tabard/", Mode: 0o755},
		{Name: "usr/", Mode: 0o755}, {Name: "usr/local/", Mode: 0o755}, {Name: "usr/local/bin/", Mode: 0o755},
		{Name: "usr/local/bin/tabard", Mode: 0o755, Size: int64(len(p.binary))},
		{Name: "var/", Mode: 0o755}, {Name: "var/lib/", Mode: 0o755}, {Name: "var/lib/tabard/", Mode: 0o700, Uid: user, Gid: user},
	} {
		h.ModTime, h.Format = created, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return nil, "", err
		}
		if h.Size > 0 {
			if _, err := w.Write(p.binary); err != nil {
				return nil, "", err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(plain.Bytes()); err != nil {
		return nil, "", err
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), digest(plain.Bytes()), nil
}

// archive is the tar file. The first error stays in err.
type archive struct {
	*tar.Writer
	time time.Time
	seen map[string]bool // paths
	err  error
}

// blob adds content and returns its descriptor.
func (a *archive) blob(mediaType string, content []byte) object {
	d := object{"mediaType": mediaType, "digest": digest(content), "size": len(content)}
	a.bytes(blobPath(d), content)
	return d
}

func (a *archive) file(name string, content any) { a.bytes(name, a.encode(content)) }

func (a *archive) bytes(name string, content []byte) {
	if a.err != nil || a.seen[name] {
		return
	}
	a.seen[name] = true
	if a.err = a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: a.time, Format: tar.FormatPAX}); a.err == nil {
		_, a.err = a.Write(content)
	}
}

func blobPath(descriptor object) string {
	return "blobs/" + strings.Replace(descriptor["digest"].(string), ":", "/", 1)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (a *archive) encode(v any) []byte {
	b, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	return b
}
