// Records what cel-go says to the expressions of cel/tests/cases.txt in Kubernetes' environment, one JSON line a case:
//
//	cargo xtask cel
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"gopkg.in/inf.v0"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
)

// What is recorded of one expression.
type answer struct {
	Version    uint   `json:"version"`
	Expression string `json:"expression"`
	// Why it does not compile.
	Rejected string `json:"rejected,omitempty"`
	// Why it cannot be planned, or what its run faulted with.
	Fault  string `json:"fault,omitempty"`
	Result string `json:"result,omitempty"`
	Type   string `json:"type,omitempty"`
	Min    uint64 `json:"min"`
	Max    uint64 `json:"max"`
	Cost   uint64 `json:"cost"`
}

// What is known of the sizes of variables, by path.
var sizes = map[string]checker.SizeEstimate{
	"s":                   {Min: 0, Max: 100},
	"l":                   {Min: 1, Max: 10},
	"ls":                  {Min: 0, Max: 10},
	"ls.@items":           {Min: 0, Max: 20},
	"self.name":           {Min: 1, Max: 63},
	"self.tags":           {Min: 0, Max: 10},
	"self.tags.@items":    {Min: 0, Max: 20},
	"self.labels":         {Min: 0, Max: 5},
	"self.labels.@keys":   {Min: 0, Max: 30},
	"self.labels.@values": {Min: 0, Max: 40},
	"self.spec.image":     {Min: 3, Max: 200},
}

type sizer struct{}

func (sizer) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	if size, found := sizes[strings.Join(node.Path(), ".")]; found {
		return &size
	}
	return nil
}

func (sizer) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// Lets those who get pass, and fails where it is told to.
type gate struct{}

func (gate) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	what := a.GetPath()
	if a.IsResourceRequest() {
		what = strings.Join([]string{a.GetAPIGroup(), a.GetResource(), a.GetSubresource(), a.GetNamespace(), a.GetName()}, "|")
	}
	who := ""
	if name := a.GetUser().GetName(); name != "asker" {
		who = name + " "
	}
	switch a.GetVerb() {
	case "get":
		return authorizer.DecisionAllow, who + "may " + what, nil
	case "error":
		return authorizer.DecisionNoOpinion, "", errors.New("no answer")
	}
	return authorizer.DecisionNoOpinion, who + "may not " + what, nil
}

const object = `{"metadata":{"name":"web","namespace":"default","labels":{"app":"web","tier":"front"},"annotations":{}},
"spec":{"replicas":3,"ratio":0.5,"paused":false,"items":["x","y","z"],"nothing":null,
"containers":[{"name":"a","image":"nginx:1","ports":[80,443]},{"name":"b","image":"redis"}]}}`
const self = `{"name":"web","replicas":2,"tags":["a","bb"],"labels":{"app":"web"},"x__dash__y":1,"__if__":2,"__namespace__":"ns",
"spec":{"image":"nginx","ratio":1.5}}`

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: cel CASES")
	}
	file, err := os.Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	minor := uint(36)
	env := environmentOf(minor)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if digits, found := strings.CutPrefix(line, "@"); found {
			if n, err := strconv.Atoi(digits); err == nil {
				minor = uint(n)
				env = environmentOf(minor)
				continue
			}
		}
		if err := out.Encode(ask(env, minor, line)); err != nil {
			log.Fatal(err)
		}
	}
}

// The environment of a minor version; with 100 added, that of device selectors, which can bind names.
func environmentOf(minor uint) *cel.Env {
	options := []cel.EnvOption{}
	if minor > 100 {
		minor -= 100
		options = append(options, ext.Bindings(ext.BindingsVersion(0)))
	}
	spec := apiservercel.NewObjectType("PodSpec", map[string]*apiservercel.DeclField{
		"image": apiservercel.NewDeclField("image", apiservercel.StringType, true, nil, nil),
		"ratio": apiservercel.NewDeclField("ratio", apiservercel.DoubleType, true, nil, nil),
	})
	pod := apiservercel.NewObjectType("Pod", map[string]*apiservercel.DeclField{
		"name":          apiservercel.NewDeclField("name", apiservercel.StringType, true, nil, nil),
		"missing":       apiservercel.NewDeclField("missing", apiservercel.StringType, false, nil, nil),
		"replicas":      apiservercel.NewDeclField("replicas", apiservercel.IntType, true, nil, nil),
		"tags":          apiservercel.NewDeclField("tags", apiservercel.NewListType(apiservercel.StringType, 10), true, nil, nil),
		"labels":        apiservercel.NewDeclField("labels", apiservercel.NewMapType(apiservercel.StringType, apiservercel.StringType, 5), true, nil, nil),
		"spec":          apiservercel.NewDeclField("spec", spec, true, nil, nil),
		"x__dash__y":    apiservercel.NewDeclField("x__dash__y", apiservercel.IntType, true, nil, nil),
		"__if__":        apiservercel.NewDeclField("__if__", apiservercel.IntType, true, nil, nil),
		"__namespace__": apiservercel.NewDeclField("__namespace__", apiservercel.StringType, true, nil, nil),
	})
	options = append(options,
		cel.Variable("object", cel.DynType),
		cel.Variable("self", pod.CelType()),
		cel.Variable("i", cel.IntType),
		cel.Variable("u", cel.UintType),
		cel.Variable("d", cel.DoubleType),
		cel.Variable("s", cel.StringType),
		cel.Variable("by", cel.BytesType),
		cel.Variable("l", cel.ListType(cel.IntType)),
		cel.Variable("ls", cel.ListType(cel.StringType)),
		cel.Variable("m", cel.MapType(cel.StringType, cel.IntType)),
		cel.Variable("x", cel.DynType),
		cel.Variable("t", cel.TimestampType),
		cel.Variable("dur", cel.DurationType),
		cel.Variable("e", cel.ListType(cel.IntType)),
		cel.Variable("n", cel.DynType),
	)
	if minor >= 27 {
		options = append(options, cel.Variable("authorizer", library.AuthorizerType))
	}
	set, err := environment.MustBaseEnvSet(version.MajorMinor(1, minor)).Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0),
		EnvOptions:        options,
		DeclTypes:         []*apiservercel.DeclType{pod},
	})
	if err != nil {
		log.Fatal(err)
	}
	return set.NewExpressionsEnv()
}

func variables() map[string]any {
	decoded := func(text string) any {
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			log.Fatal(err)
		}
		return whole(value)
	}
	return map[string]any{
		"object":     decoded(object),
		"self":       decoded(self),
		"i":          int64(7),
		"u":          uint64(9),
		"d":          2.5,
		"s":          "hello world",
		"by":         []byte("bytes"),
		"l":          []int64{3, 1, 2},
		"ls":         []string{"b", "a", "c"},
		"m":          map[string]int64{"one": 1, "two": 2},
		"x":          int64(5),
		"t":          time.Date(2024, 3, 9, 22, 5, 6, 789_000_000, time.UTC),
		"dur":        90*time.Minute + 1500*time.Millisecond,
		"e":          []int64{},
		"n":          types.NullValue,
		"authorizer": library.NewAuthorizerVal(&user.DefaultInfo{Name: "asker"}, gate{}),
	}
}

// Numbers without a fraction are integers, as in objects of Kubernetes.
func whole(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			v[key] = whole(inner)
		}
	case []any:
		for at, inner := range v {
			v[at] = whole(inner)
		}
	case float64:
		if v == math.Trunc(v) {
			return int64(v)
		}
	}
	return value
}

func ask(env *cel.Env, minor uint, expression string) (told answer) {
	told = answer{Version: minor, Expression: expression}
	defer func() {
		if r := recover(); r != nil {
			told.Fault = fmt.Sprint("panic: ", r)
		}
	}()
	ast, issues := env.Compile(expression)
	if issues.Err() != nil {
		told.Rejected = issues.String()
		return told
	}
	told.Type = checker.FormatCELType(ast.OutputType())
	estimate, err := env.EstimateCost(ast, &library.CostEstimator{SizeEstimator: sizer{}})
	if err != nil {
		log.Fatal(err)
	}
	told.Min, told.Max = estimate.Min, estimate.Max
	program, err := env.Program(ast, cel.InterruptCheckFrequency(100))
	if err != nil {
		told.Fault = err.Error()
		return told
	}
	value, details, err := program.ContextEval(context.Background(), variables())
	if details != nil && details.ActualCost() != nil {
		told.Cost = *details.ActualCost()
	}
	if err != nil {
		told.Fault = err.Error()
		return told
	}
	told.Result = shown(value)
	return told
}

// A value as text that says its type, too.
func shown(value ref.Val) string {
	switch v := value.(type) {
	case types.Null:
		return "null"
	case types.Bool:
		return strconv.FormatBool(bool(v))
	case types.Int:
		return strconv.FormatInt(int64(v), 10)
	case types.Uint:
		return strconv.FormatUint(uint64(v), 10) + "u"
	case types.Double:
		if math.IsNaN(float64(v)) {
			return "double NaN"
		}
		return fmt.Sprintf("double %016x", math.Float64bits(float64(v)))
	case types.String:
		return "'" + string(v) + "'"
	case types.Bytes:
		return "bytes " + hex.EncodeToString(v)
	case types.Duration:
		return fmt.Sprintf("duration %d", v.Nanoseconds())
	case types.Timestamp:
		return fmt.Sprintf("timestamp %d.%09d", v.Unix(), v.Nanosecond())
	case *types.Optional:
		if v.HasValue() {
			return "some " + shown(v.GetValue())
		}
		return "none"
	case ref.Type:
		return "type " + v.TypeName()
	case traits.Lister:
		items := []string{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			items = append(items, shown(it.Next()))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case traits.Mapper:
		entries := []string{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			entries = append(entries, shown(key)+": "+shown(v.Get(key)))
		}
		sort.Strings(entries)
		return "{" + strings.Join(entries, ", ") + "}"
	case *apiservercel.Quantity:
		return quantity(*v)
	case apiservercel.Quantity:
		return quantity(v)
	case apiservercel.IP:
		return "ip " + v.Addr.String()
	case apiservercel.CIDR:
		return "cidr " + v.Prefix.String()
	}
	return "a " + value.Type().TypeName()
}

func quantity(q apiservercel.Quantity) string {
	dec := q.Quantity.DeepCopy()
	nanos := new(inf.Dec).Round(dec.AsDec(), 9, inf.RoundUp)
	return "quantity " + nanos.UnscaledBig().String()
}
