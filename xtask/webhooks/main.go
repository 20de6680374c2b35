// Command webhooks calls a server of its own through upstream's libraries and records what they sent and what they made of
// its answers. `webhook/tests` replays that.
//
//	webhooks DIRECTORY     writes conversion.jsonl, admission.jsonl.gz, warnings.jsonl.gz and rules.jsonl.gz there
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

func main() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: webhooks DIRECTORY")
	}
	world, err := newWorld()
	if err != nil {
		return err
	}
	defer world.server.Close()
	conversions, err := conversions(world)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(args[0], "conversion.jsonl"), conversions); err != nil {
		return err
	}
	admissions, err := admissions(world)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(args[0], "admission.jsonl.gz"), admissions); err != nil {
		return err
	}
	if err := write(filepath.Join(args[0], "warnings.jsonl.gz"), warningsTable()); err != nil {
		return err
	}
	return write(filepath.Join(args[0], "rules.jsonl.gz"), rulesTable())
}

// write makes a file of lines, packed if its name says so.
func write[T any](path string, lines []T) error {
	var out bytes.Buffer
	for _, line := range lines {
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	if strings.HasSuffix(path, ".gz") {
		var packed bytes.Buffer
		writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := writer.Write(out.Bytes()); err != nil {
			return err
		}
		if err := writer.Close(); err != nil {
			return err
		}
		out = packed
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// reply is what the server answers at a path. $UID in its body is the request's.
type reply struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body"`
	// It answers nothing at all and closes the connection.
	Hangup bool `json:"hangup,omitempty"`
	// It promises more than it sends.
	Short bool `json:"short,omitempty"`
	// The answers after this one, in order; the last stays.
	Then []reply `json:"then,omitempty"`
}

// call is what the server was asked.
type call struct {
	Path    string            `json:"path"`
	Query   string            `json:"query"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// world is the server, which stands for all Services.
type world struct {
	server *httptest.Server
	ca     []byte

	lock    sync.Mutex
	replies map[string][]reply
	calls   []call
	uids    []string
}

const serviceName, serviceNamespace = "hook", "system"

func newWorld() (*world, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "recorder"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{serviceName + "." + serviceNamespace + ".svc"},
		IsCA:     true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	w := &world{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})}
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	w.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}
	w.server.StartTLS()
	return w, nil
}

// ResolveEndpoint makes the server every Service but one that is not there.
func (w *world) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	if name == "missing" {
		return nil, fmt.Errorf("service %q not found", name)
	}
	return url.Parse(w.server.URL)
}

// answering sets what is answered, and forgets what was asked.
func (w *world) answering(replies map[string]reply) {
	w.lock.Lock()
	defer w.lock.Unlock()
	w.calls, w.uids, w.replies = nil, nil, map[string][]reply{}
	for path, first := range replies {
		then := first.Then
		first.Then = nil
		w.replies[path] = append([]reply{first}, then...)
	}
}

// asked is what was asked since, in the order of the paths where it came at once.
func (w *world) asked(sorted bool) []call {
	w.lock.Lock()
	defer w.lock.Unlock()
	calls := append([]call{}, w.calls...)
	if sorted {
		sort.SliceStable(calls, func(i, j int) bool { return calls[i].Path < calls[j].Path })
	}
	return calls
}

// anonymous is a text without the UIDs of the requests.
func (w *world) anonymous(text string) string {
	w.lock.Lock()
	defer w.lock.Unlock()
	for _, uid := range w.uids {
		text = strings.ReplaceAll(text, uid, "$UID")
	}
	return text
}

var uidOf = regexp.MustCompile(`"uid":"([0-9a-f]{8}-[0-9a-f-]{27})"`)

func (w *world) serve(out http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	uid := "none"
	if found := uidOf.FindSubmatch(body); found != nil {
		uid = string(found[1])
	}
	w.lock.Lock()
	w.uids = append(w.uids, uid)
	shown := call{Path: request.URL.Path, Query: request.URL.RawQuery, Headers: map[string]string{}}
	for _, name := range []string{"Accept", "Content-Type", "User-Agent"} {
		shown.Headers[strings.ToLower(name)] = request.Header.Get(name)
	}
	shown.Body = json.RawMessage(bytes.ReplaceAll(bytes.TrimSpace(body), []byte(uid), []byte("$UID")))
	w.calls = append(w.calls, shown)
	queue := w.replies[request.URL.Path]
	if len(queue) == 0 {
		queue = []reply{{Status: 404, Body: "nothing here"}}
	}
	answer := queue[0]
	if len(queue) > 1 {
		w.replies[request.URL.Path] = queue[1:]
	}
	w.lock.Unlock()
	if answer.Hangup {
		panic(http.ErrAbortHandler)
	}
	text := strings.ReplaceAll(answer.Body, "$UID", uid)
	out.Header()["Date"] = nil
	for name, value := range answer.Headers {
		out.Header().Set(name, value)
	}
	if _, given := answer.Headers["Content-Type"]; !given {
		out.Header()["Content-Type"] = nil
	}
	if answer.Short {
		out.Header().Set("Content-Length", strconv.Itoa(len(text)+10))
	}
	out.WriteHeader(answer.Status)
	io.WriteString(out, text)
}
