// Command notary is a set of webhooks as operators bring them: it makes an authority of its own, tells the cluster of it (in the
// configurations and the definition that name its Service), and then mutates, validates and converts one kind.
//
// usage, in a pod: notary NAMESPACE SERVICE
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const (
	group        = "notary.example.com"
	maxReview    = 4 << 20
	address      = ":9443"
	health       = ":9440"
	hooks        = "admissionregistration.k8s.io"
	name         = "notary"
	definitionOf = "deeds." + group
)

func main() {
	namespace, service := os.Args[1], os.Args[2]
	certificate, authority, err := identity(service + "." + namespace + ".svc")
	check(err)
	listening := make(chan error)
	go func() { listening <- serve(certificate) }()
	config, err := rest.InClusterConfig()
	check(err)
	check(inject(dynamic.NewForConfigOrDie(config), authority))
	ready.Store(true)
	fmt.Println("the cluster knows the authority")
	check(<-listening)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var ready atomic.Bool

// identity makes an authority and what it signs for a host; it answers the authority's certificate as well.
func identity(host string) (tls.Certificate, []byte, error) {
	now := time.Now()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, own.Public(), own)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: authority.NotBefore,
		NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signed, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), own)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	told := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root})
	return tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key}, told, nil
}

// inject writes the authority into everything that names the webhooks.
func inject(client dynamic.Interface, authority []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	add := func(path string) map[string]any {
		return map[string]any{"op": "add", "path": path, "value": authority}
	}
	targets := []struct {
		resource schema.GroupVersionResource
		name     string
		path     string
	}{
		{schema.GroupVersionResource{Group: hooks, Version: "v1", Resource: "mutatingwebhookconfigurations"}, name, "/webhooks/0/clientConfig/caBundle"},
		{schema.GroupVersionResource{Group: hooks, Version: "v1", Resource: "validatingwebhookconfigurations"}, name, "/webhooks/0/clientConfig/caBundle"},
		{
			schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
			definitionOf, "/spec/conversion/webhook/clientConfig/caBundle",
		},
	}
	for _, target := range targets {
		patch, err := json.Marshal([]any{add(target.path)})
		if err != nil {
			return err
		}
		_, err = client.Resource(target.resource).Patch(ctx, target.name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: name})
		if err != nil {
			return fmt.Errorf("%s %s: %w", target.resource.Resource, target.name, err)
		}
	}
	return nil
}

func serve(certificate tls.Certificate) error {
	probes := http.NewServeMux()
	probes.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() { check(http.ListenAndServe(health, probes)) }()
	mux := http.NewServeMux()
	mux.HandleFunc("/mutate", review(mutate))
	mux.HandleFunc("/validate", review(validate))
	mux.HandleFunc("/convert", convert)
	server := &http.Server{Addr: address, Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	return server.ListenAndServeTLS("", "")
}

func review(judge func(*admissionv1.AdmissionRequest, *unstructured.Unstructured, *admissionv1.AdmissionResponse) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var asked admissionv1.AdmissionReview
		if !read(w, r, &asked) {
			return
		}
		object, response := &unstructured.Unstructured{}, &admissionv1.AdmissionResponse{UID: asked.Request.UID, Allowed: true}
		if err := object.UnmarshalJSON(asked.Request.Object.Raw); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := judge(asked.Request, object, response); err != nil {
			response.Allowed = false
			response.Result = &metav1.Status{Code: http.StatusForbidden, Message: err.Error()}
		}
		write(w, admissionv1.AdmissionReview{TypeMeta: asked.TypeMeta, Response: response})
	}
}

// mutate names who has asked, once.
func mutate(asked *admissionv1.AdmissionRequest, object *unstructured.Unstructured, response *admissionv1.AdmissionResponse) error {
	if _, found, _ := unstructured.NestedString(object.Object, "spec", "signedBy"); found {
		return nil
	}
	patch, err := json.Marshal([]any{map[string]any{"op": "add", "path": "/spec/signedBy", "value": asked.UserInfo.Username}})
	if err != nil {
		return err
	}
	kind := admissionv1.PatchTypeJSONPatch
	response.Patch, response.PatchType = patch, &kind
	return nil
}

func validate(_ *admissionv1.AdmissionRequest, object *unstructured.Unstructured, response *admissionv1.AdmissionResponse) error {
	parties, _, _ := unstructured.NestedStringSlice(object.Object, "spec", "parties")
	if len(parties) < 2 {
		return fmt.Errorf("a deed wants two parties, not %d", len(parties))
	}
	if len(parties) > 2 {
		response.Warnings = []string{"more than two parties are unusual"}
	}
	return nil
}

type conversion struct {
	metav1.TypeMeta `json:",inline"`
	Request         *struct {
		UID        types.UID              `json:"uid"`
		APIVersion string                 `json:"desiredAPIVersion"`
		Objects    []runtime.RawExtension `json:"objects"`
	} `json:"request,omitempty"`
	Response *converted `json:"response,omitempty"`
}

type converted struct {
	UID     types.UID        `json:"uid"`
	Objects []map[string]any `json:"convertedObjects"`
	Result  metav1.Status    `json:"result"`
}

// convert: v1alpha1 has one text of names, v1 a list of them.
func convert(w http.ResponseWriter, r *http.Request) {
	var asked conversion
	if !read(w, r, &asked) {
		return
	}
	answer := &converted{UID: asked.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
	for _, raw := range asked.Request.Objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw.Raw); err != nil {
			answer.Result = metav1.Status{Status: metav1.StatusFailure, Message: err.Error()}
			break
		}
		if spec, found, _ := unstructured.NestedMap(object.Object, "spec"); found {
			switch parties := spec["parties"].(type) {
			case string:
				list := []any{}
				for _, party := range strings.Split(parties, ",") {
					list = append(list, strings.TrimSpace(party))
				}
				spec["parties"] = list
			case []any:
				names := make([]string, 0, len(parties))
				for _, party := range parties {
					names = append(names, fmt.Sprint(party))
				}
				spec["parties"] = strings.Join(names, ", ")
			}
			object.Object["spec"] = spec
		}
		object.SetAPIVersion(asked.Request.APIVersion)
		answer.Objects = append(answer.Objects, object.Object)
	}
	write(w, conversion{TypeMeta: asked.TypeMeta, Response: answer})
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxReview))
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(body)).Decode(into)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

func write(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	// Who has gone does not read it.
	_ = json.NewEncoder(w).Encode(answer)
}
