// Command definitions asks upstream's own strategy of CustomResourceDefinitions what it makes of many of them, written by hand and
// changed at random, and records it. `api/tests/definitions.rs` asks the same of ours.
//
//	definitions FILE [CASES [SEED]]     gzipped lines of JSON
//	definitions -columns FILE           the same of what columns show of objects, for `api/tests/columns.rs`
//	definitions -owned FILE             the same of who owns what of a custom resource, for `api/tests/apply.rs`
//
// The first lines are the documents that all cases start from; a case names one and what is changed in it. All of it follows from
// one seed.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

const (
	defaultCases = 6000
	defaultSeed  = 36
	// As many runs tell whether the order of faults is that of a map.
	runs = 24
)

//go:embed bases/*.yaml
var files embed.FS

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)

	selfType = regexp.MustCompile("selfType[0-9]+")
	step     = regexp.MustCompile(`\[[^]]*\]|[^.[]+`)
	index    = regexp.MustCompile(`^\[[0-9]+\]$`)
)

func main() {
	install.Install(scheme)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "-columns" {
		lines, err := columns(defaultCases, defaultSeed)
		if err != nil {
			return err
		}
		return write(args[1], lines)
	}
	if len(args) == 2 && args[0] == "-owned" {
		lines, err := owned(defaultHistories, defaultSeed)
		if err != nil {
			return err
		}
		return write(args[1], lines)
	}
	if len(args) < 1 || len(args) > 3 {
		return errors.New("usage: definitions FILE [CASES [SEED]]")
	}
	numbers := []int{defaultCases, defaultSeed}
	for i, text := range args[1:] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	bases, err := readBases()
	if err != nil {
		return err
	}
	var lines bytes.Buffer
	for _, base := range bases {
		if err := line(&lines, map[string]any{"base": base.name, "document": base.document}); err != nil {
			return err
		}
	}
	skipped := 0
	for _, c := range append(byHand(bases), atRandom(bases, numbers[0], uint64(numbers[1]))...) {
		told, err := tell(c)
		if err != nil {
			skipped++
			continue
		}
		if err := line(&lines, told); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, skipped, "documents that upstream cannot decode are left out")
	return write(args[0], lines.Bytes())
}

func line(to *bytes.Buffer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	to.Write(append(text, '\n'))
	return nil
}

func write(file string, text []byte) error {
	var packed bytes.Buffer
	writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(text); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, packed.Bytes(), 0o644)
}

type base struct {
	name     string
	document any
}

func readBases() ([]base, error) {
	entries, err := files.ReadDir("bases")
	if err != nil {
		return nil, err
	}
	var bases []base
	for _, entry := range entries {
		text, err := files.ReadFile(path.Join("bases", entry.Name()))
		if err != nil {
			return nil, err
		}
		var document any
		if err := yaml.Unmarshal(text, &document); err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Name(), err)
		}
		bases = append(bases, base{strings.TrimSuffix(entry.Name(), ".yaml"), document})
	}
	return bases, nil
}

// One edit sets what a JSON pointer points to, or takes it away.
type edit struct {
	At    string `json:"at"`
	Value any    `json:"value,omitempty"`
	Gone  bool   `json:"gone,omitempty"`
}

// One definition that is created, or replaces what was there.
type theCase struct {
	base base
	// create, update or status.
	op string
	// Of the old definition, where there is one.
	before []edit
	edits  []edit
	// Whether the old definition is established.
	established bool
}

func tell(c theCase) (map[string]any, error) {
	told := map[string]any{"from": c.base.name, "op": c.op, "edits": orEmpty(c.edits)}
	newDocument, err := edited(c.base.document, c.edits)
	if err != nil {
		return nil, err
	}
	created, err := decode(newDocument)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	strategy := customresourcedefinition.NewStrategy(scheme)
	var faults func() field.ErrorList
	var warnings []string
	switch c.op {
	case "create":
		strategy.PrepareForCreate(ctx, created)
		faults = func() field.ErrorList { return strategy.Validate(ctx, created) }
		warnings = strategy.WarningsOnCreate(ctx, created)
	case "update", "status":
		told["before"], told["established"] = orEmpty(c.before), c.established
		oldDocument, err := edited(c.base.document, c.before)
		if err != nil {
			return nil, err
		}
		old, err := decode(oldDocument)
		if err != nil {
			return nil, err
		}
		strategy.PrepareForCreate(ctx, old)
		if c.established {
			old.Status.Conditions = []apiextensions.CustomResourceDefinitionCondition{
				{Type: apiextensions.Established, Status: apiextensions.ConditionTrue},
			}
		}
		if c.op == "update" {
			strategy.PrepareForUpdate(ctx, created, old)
			faults = func() field.ErrorList { return strategy.ValidateUpdate(ctx, created, old) }
			warnings = strategy.WarningsOnUpdate(ctx, created, old)
		} else {
			status := customresourcedefinition.NewStatusStrategy(scheme)
			status.PrepareForUpdate(ctx, created, old)
			faults = func() field.ErrorList { return status.ValidateUpdate(ctx, created, old) }
		}
	}
	causes := shown(faults)
	isPanic := len(causes) == 1 && causes[0] == "panic"
	ordered := isPanic || !parted(causes)
	for range runs - 1 {
		// One has no order.
		if len(causes) > 1 && !slices.Equal(causes, shown(faults)) {
			ordered = false
		}
	}
	if !ordered {
		slices.Sort(causes)
	}
	told["causes"], told["ordered"] = orEmpty(causes), ordered
	slices.Sort(warnings)
	told["warnings"] = orEmpty(warnings)
	out := &v1.CustomResourceDefinition{}
	if err := scheme.Convert(created, out, nil); err != nil {
		return nil, err
	}
	told["names"], told["conversion"] = out.Spec.Names, out.Spec.Conversion
	told["status"], told["generation"] = out.Status, out.Generation
	return told, nil
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Whether faults lie in different fields of one object, through which upstream goes in any order.
func parted(causes []string) bool {
	for i, one := range causes {
		for _, other := range causes[:i] {
			a, b := step.FindAllString(strings.Split(one, "|")[1], -1), step.FindAllString(strings.Split(other, "|")[1], -1)
			at := 0
			for at < len(a) && at < len(b) && a[at] == b[at] {
				at++
			}
			if at < len(a) && at < len(b) && a[at][0] == '[' && b[at][0] == '[' && !index.MatchString(a[at]) {
				return true
			}
		}
	}
	return false
}

// The faults, without those of metadata that all kinds have.
func shown(faults func() field.ErrorList) (causes []string) {
	// Upstream answers these with a 500: a selectable field of a schema that cannot be read.
	defer func() {
		if recover() != nil {
			causes = []string{"panic"}
		}
	}()
	list := faults()
	for _, fault := range list {
		if fault.Field != "metadata.name" && strings.HasPrefix(fault.Field, "metadata.") && !strings.Contains(fault.Field, "api-approved") {
			continue
		}
		// Upstream calls the type of a rule's value by the time.
		body := selfType.ReplaceAllString(fault.ErrorBody(), "selfType")
		causes = append(causes, fmt.Sprintf("%s|%s|%s", fault.Type, fault.Field, body))
	}
	return causes
}

func decode(document any) (*apiextensions.CustomResourceDefinition, error) {
	text, err := json.Marshal(document)
	if err != nil {
		return nil, err
	}
	object, err := runtime.Decode(codecs.UniversalDecoder(apiextensions.SchemeGroupVersion), text)
	if err != nil {
		return nil, err
	}
	return object.(*apiextensions.CustomResourceDefinition), nil
}

func edited(document any, edits []edit) (any, error) {
	text, err := json.Marshal(document)
	if err != nil {
		return nil, err
	}
	var copied any
	if err := json.Unmarshal(text, &copied); err != nil {
		return nil, err
	}
	for _, e := range edits {
		if copied, err = apply(copied, e); err != nil {
			return nil, err
		}
	}
	return copied, nil
}

func steps(pointer string) []string {
	parts := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	for i, part := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
	}
	return parts
}

func apply(document any, e edit) (any, error) {
	return applied(document, steps(e.At), e)
}

// A list grows where the place behind its last item is set.
func applied(at any, steps []string, e edit) (any, error) {
	if len(steps) == 0 {
		return e.Value, nil
	}
	switch at := at.(type) {
	case map[string]any:
		if len(steps) == 1 && e.Gone {
			delete(at, steps[0])
			return at, nil
		}
		below, err := applied(at[steps[0]], steps[1:], e)
		if err != nil {
			return nil, err
		}
		at[steps[0]] = below
		return at, nil
	case []any:
		index, err := strconv.Atoi(steps[0])
		if err != nil || index > len(at) {
			return nil, fmt.Errorf("no place %q", e.At)
		}
		if len(steps) == 1 && e.Gone {
			return slices.Delete(at, index, min(index+1, len(at))), nil
		}
		if index == len(at) {
			at = append(at, nil)
		}
		below, err := applied(at[index], steps[1:], e)
		if err != nil {
			return nil, err
		}
		at[index] = below
		return at, nil
	case nil:
		return applied(map[string]any{}, steps, e)
	}
	return nil, fmt.Errorf("no place %q", e.At)
}

func pick[T any](random *rand.Rand, from []T) T {
	return from[random.IntN(len(from))]
}
