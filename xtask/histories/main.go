// Command histories runs upstream's own field manager on random histories of several managers over an object, and records
// what each step made of it. `api/tests/apply.rs` replays them.
//
//	histories FILE [PER_KIND [SEED]]     gzipped lines of JSON, a step each
//
// All of it follows from one seed; times are those of the step.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// What is recorded in the tree: 62 histories of each kind are some 290 kB.
const (
	defaultPerKind = 62
	defaultSeed    = 14
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 3 {
		return errors.New("usage: histories FILE [PER_KIND [SEED]]")
	}
	numbers := []int{defaultPerKind, defaultSeed}
	for i, text := range args[1:] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	perKind, seed := numbers[0], uint64(numbers[1])
	var lines bytes.Buffer
	for _, kind := range kinds {
		for i := range perKind {
			random := rand.New(rand.NewPCG(seed, uint64(i)<<8+uint64(len(kind.gvk.Kind))))
			if err := history(kind, random, &lines); err != nil {
				return fmt.Errorf("%s, history %d: %w", kind.gvk.Kind, i, err)
			}
		}
	}
	var packed bytes.Buffer
	writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(lines.Bytes()); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(args[0], packed.Bytes(), 0o644)
}

// step is one line: what was done, and what came of it.
type step struct {
	// The first of a history has none of an object yet.
	First       bool   `json:"first,omitempty"`
	Kind        string `json:"kind"`
	Operation   string `json:"operation"`
	Manager     string `json:"manager"`
	Force       bool   `json:"force,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Now         string `json:"now"`
	// The document that is applied, or the whole object that is written.
	Document json.RawMessage `json:"document"`
	// Exactly one of these.
	Object json.RawMessage `json:"object,omitempty"`
	Error  *failure        `json:"error,omitempty"`
}

type failure struct {
	Code    int32       `json:"code"`
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Causes  [][3]string `json:"causes"`
}

// world is an object, and who may write it through what.
type world struct {
	kind     kind
	managers map[string]*managedfields.FieldManager
	// In the internal version; nil where there is none.
	live runtime.Object
	at   int
}

func newWorld(kind kind) (*world, error) {
	w := &world{kind: kind, managers: map[string]*managedfields.FieldManager{}}
	scheme := legacyscheme.Scheme
	for subresource, reset := range kind.reset {
		fields := fieldpath.NewSet()
		for _, path := range reset {
			fields.Insert(fieldpath.MakePathOrDie(path...))
		}
		version := fieldpath.APIVersion(kind.gvk.GroupVersion().String())
		filters := fieldpath.NewExcludeFilterSetMap(map[fieldpath.APIVersion]*fieldpath.Set{version: fields})
		manager, err := managedfields.NewDefaultFieldManager(
			applyconfigurations.NewTypeConverter(scheme), runtime.UnsafeObjectConvertor(scheme), scheme, scheme, kind.gvk,
			schema.GroupVersion{Group: kind.gvk.Group, Version: runtime.APIVersionInternal}, subresource, filters)
		if err != nil {
			return nil, err
		}
		w.managers[subresource] = manager
	}
	return w, nil
}

func history(kind kind, random *rand.Rand, lines *bytes.Buffer) error {
	w, err := newWorld(kind)
	if err != nil {
		return err
	}
	steps := 5 + random.IntN(8)
	if random.IntN(12) == 0 {
		steps = 24 // Enough managers to become too many.
	}
	for n := range steps {
		next, err := w.choose(random, n, steps)
		if err != nil {
			return err
		}
		if err := w.take(next); err != nil {
			return fmt.Errorf("step %d: %w", n, err)
		}
		line, err := json.Marshal(next)
		if err != nil {
			return err
		}
		lines.Write(line)
		lines.WriteByte('\n')
	}
	return nil
}

// choose decides what is done next.
func (w *world) choose(random *rand.Rand, n, steps int) (*step, error) {
	w.at++
	next := &step{First: n == 0, Kind: w.kind.gvk.Kind, Manager: fmt.Sprintf("m%d", 1+random.IntN(3))}
	next.Now = time.Unix(1_700_000_000+int64(60*w.at), 0).UTC().Format(time.RFC3339)
	if steps > 20 {
		next.Manager = fmt.Sprintf("m%d", n)
	}
	g := &generator{random: random}
	roll := random.IntN(20)
	switch {
	case w.live != nil && roll < 1:
		next.Operation, next.Manager = "update", "resetting"
		object, err := w.versioned()
		if err != nil {
			return nil, err
		}
		object["metadata"].(map[string]any)["managedFields"] = g.managedFields(w.kind.gvk.GroupVersion().String())
		return next, next.say(object)
	case w.live != nil && roll < 3:
		// What `kubectl apply` does by itself.
		next.Operation, next.Manager = "update", "kubectl-client-side-apply"
		object, err := w.versioned()
		if err != nil {
			return nil, err
		}
		document := w.kind.document(g)
		applied, err := json.Marshal(document)
		if err != nil {
			return nil, err
		}
		lay(object, document)
		metadata := object["metadata"].(map[string]any)
		annotations, _ := metadata["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
		}
		annotations["kubectl.kubernetes.io/last-applied-configuration"] = string(applied)
		metadata["annotations"] = annotations
		return next, next.say(object)
	case w.live != nil && roll < 6 && len(w.kind.reset) > 1:
		next.Operation, next.Subresource = "update", "status"
		object, err := w.versioned()
		if err != nil {
			return nil, err
		}
		object["status"] = w.kind.status(g)
		if random.IntN(4) == 0 {
			w.kind.change(g, object)
		}
		return next, next.say(object)
	case w.live != nil && (roll < 11 || steps > 20):
		next.Operation = "update"
		object, err := w.versioned()
		if err != nil {
			return nil, err
		}
		for range 1 + random.IntN(3) {
			w.kind.change(g, object)
		}
		return next, next.say(object)
	case w.live == nil && (roll < 8 || steps > 20):
		next.Operation = "update"
		return next, next.say(w.kind.document(g))
	}
	next.Operation, next.Force = "apply", random.IntN(3) == 0
	if random.IntN(4) == 0 {
		next.Manager = "kubectl"
	}
	document := w.kind.document(g)
	if random.IntN(15) == 0 {
		w.kind.spoil(g, document)
	}
	return next, next.say(document)
}

func (s *step) say(document any) (err error) {
	s.Document, err = json.Marshal(document)
	return err
}

// take does it.
func (w *world) take(next *step) error {
	live := w.live
	if live == nil {
		// As the handlers make it, which is in the version of the request.
		empty, err := legacyscheme.Scheme.New(w.kind.gvk)
		if err != nil {
			return err
		}
		live = empty
	} else {
		live = live.DeepCopyObject()
	}
	manager := w.managers[next.Subresource]
	var result runtime.Object
	var err error
	if next.Operation == "apply" {
		document := &unstructured.Unstructured{Object: map[string]any{}}
		if err := json.Unmarshal(next.Document, &document.Object); err != nil {
			return err
		}
		result, err = manager.Apply(live, document, next.Manager, next.Force)
	} else {
		object, _, decodeErr := legacyscheme.Codecs.UniversalDecoder().Decode(next.Document, &w.kind.gvk, nil)
		if decodeErr != nil {
			return decodeErr
		}
		result = manager.UpdateNoErrors(live, object, next.Manager)
	}
	if err != nil {
		next.Error = failed(err)
		return nil
	}
	accessor, err := meta.Accessor(result)
	if err != nil {
		return err
	}
	if err := w.settle(accessor, next.Now); err != nil {
		return err
	}
	if accessor.GetUID() == "" {
		accessor.SetUID("11111111-1111-4111-8111-111111111111")
	}
	if w.live, err = w.stored(result); err != nil {
		return err
	}
	object, err := w.versioned()
	if err != nil {
		return err
	}
	next.Object, err = json.Marshal(object)
	return err
}

// settle gives what was just done the time of its step.
func (w *world) settle(object metav1.Object, now string) error {
	at, err := time.Parse(time.RFC3339, now)
	if err != nil {
		return err
	}
	entries := object.GetManagedFields()
	for i := range entries {
		if entries[i].Time != nil && entries[i].Time.Year() > 2024 {
			entries[i].Time = &metav1.Time{Time: at}
		}
	}
	object.SetManagedFields(entries)
	return nil
}

// stored is the object as it is read again.
func (w *world) stored(object runtime.Object) (runtime.Object, error) {
	codec := legacyscheme.Codecs.LegacyCodec(w.kind.gvk.GroupVersion())
	text, err := runtime.Encode(codec, object)
	if err != nil {
		return nil, err
	}
	return runtime.Decode(codec, text)
}

// versioned is the live object as clients see it.
func (w *world) versioned() (map[string]any, error) {
	object, err := legacyscheme.Scheme.ConvertToVersion(w.live.DeepCopyObject(), w.kind.gvk.GroupVersion())
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	return out, json.Unmarshal(text, &out)
}

func failed(err error) *failure {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return &failure{Code: 500, Message: err.Error(), Causes: [][3]string{}}
	}
	told := status.Status()
	out := &failure{Code: told.Code, Reason: string(told.Reason), Message: told.Message, Causes: [][3]string{}}
	if told.Details != nil {
		for _, cause := range told.Details.Causes {
			out.Causes = append(out.Causes, [3]string{string(cause.Type), cause.Field, cause.Message})
		}
	}
	// Upstream tells them in no order.
	sort.Slice(out.Causes, func(i, j int) bool {
		return slices.Compare(out.Causes[i][:], out.Causes[j][:]) < 0
	})
	return out
}
