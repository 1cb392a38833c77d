package main

import (
	"bytes"
	"crypto/x509"
	"embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/proxy"
)

// clusterTemplates are the files that `tabard cluster` prints.
//
//go:embed templates/*.yaml
var clusterTemplates embed.FS

// render fills in the template of that name.
func (f *clusterFiles) render(name string) (string, error) {
	t, err := template.New(name).Funcs(template.FuncMap{
		"yaml": yamlString, "base64": base64Of, "indent": indent, "claim": celClaim, "cels": celList,
	}).ParseFS(clusterTemplates, "templates/"+name)
	if err != nil {
		return "", fmt.Errorf("read the template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, f); err != nil {
		return "", fmt.Errorf("fill in the template: %w", err)
	}
	return out.String(), nil
}

// ExtraSession is our key.
func (f *clusterFiles) ExtraSession() string { return idp.ExtraSession }

// ExtraCredentialID is Kubernetes' own key.
func (f *clusterFiles) ExtraCredentialID() string { return idp.ExtraCredentialID }

// ExtraKeys are the extra attributes that the proxy sends of people.
func (f *clusterFiles) ExtraKeys() []string { return proxy.ExtraKeys() }

// ResourceVerbs are the verbs of requests for resources. RBAC matches a verb as a whole,
// so that each has to be named.
func (f *clusterFiles) ResourceVerbs() []string {
	return []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
}

// URLVerbs are the verbs of other requests: methods in lower case.
func (f *clusterFiles) URLVerbs() []string {
	return []string{"get", "head", "post", "put", "patch", "delete", "options"}
}

// ImpersonationRoles are the roles that the proxy's account gets.
func (f *clusterFiles) ImpersonationRoles() []string {
	return []string{"tabard-impersonate", "tabard-impersonate-constrained"}
}

var (
	plainYAML = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9./_-]*(:[A-Za-z0-9./_-]+)*$`)
	wordsYAML = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
	celName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// celReserved are the words that are no field of a map in CEL.
var celReserved = strings.Fields("true false null in as break const continue else for function if import let loop package namespace return var void while")

// yamlString writes s as a YAML scalar, in quotes where it needs them.
func yamlString(s string) (string, error) {
	if plainYAML.MatchString(s) && !wordsYAML.MatchString(s) {
		return s, nil
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out) // a JSON string is a YAML one
	e.SetEscapeHTML(false)
	err := e.Encode(s)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// celClaim is the claim of that name in CEL.
func celClaim(name string) string {
	if celName.MatchString(name) && !slices.Contains(celReserved, name) {
		return "claims." + name
	}
	return "claims[" + celString(name) + "]"
}

func celString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

func celList(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = celString(s)
	}
	return strings.Join(quoted, ", ")
}

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func indent(n int, text string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+pad)
}

// certificatesIn returns the certificates in b alone: a file may hold a key as well.
func certificatesIn(b []byte) (string, error) {
	var out strings.Builder
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type == "CERTIFICATE" && err == nil {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
	if out.Len() == 0 {
		return "", errors.New("holds no certificate in PEM form")
	}
	return out.String(), nil
}

// ownCA is the certificate at the end of the server's chain if it signed itself, as
// PEM. Else the chain leads to an authority that is not known here.
func (c *Config) ownCA() string {
	if c.cert == nil {
		return ""
	}
	last := c.cert.Certificate[len(c.cert.Certificate)-1]
	if cert, err := x509.ParseCertificate(last); err != nil || !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: last}))
}
