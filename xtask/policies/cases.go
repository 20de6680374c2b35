package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

type m = map[string]any
type l = []any

func raw(value any) json.RawMessage {
	out, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return out
}

// rule is for all that is done to gadgets of these versions.
func rule(versions ...any) m {
	return m{"apiGroups": l{"example.com"}, "apiVersions": versions, "resources": l{"gadgets"}, "operations": l{"*"}}
}

func with(base m, more ...m) m {
	out := maps.Clone(base)
	for _, one := range more {
		maps.Copy(out, one)
	}
	return out
}

func resources(more ...m) m {
	return with(m{"namespaceSelector": m{}, "objectSelector": m{}, "matchPolicy": "Equivalent", "resourceRules": l{rule("v1")}}, more...)
}

func policy(name string, more ...m) json.RawMessage {
	spec := with(m{"failurePolicy": "Fail", "matchConstraints": resources()}, more...)
	return raw(m{"metadata": m{"name": name}, "spec": spec})
}

func binding(name, policy string, more ...m) json.RawMessage {
	spec := with(m{"policyName": policy, "validationActions": l{"Deny"}}, more...)
	return raw(m{"metadata": m{"name": name}, "spec": spec})
}

func checks(expressions ...string) m {
	all := l{}
	for _, expression := range expressions {
		all = append(all, m{"expression": expression})
	}
	return m{"validations": all}
}

func conditions(expressions ...string) m {
	all := l{}
	for i, expression := range expressions {
		all = append(all, m{"name": fmt.Sprintf("c%d", i), "expression": expression})
	}
	return m{"matchConditions": all}
}

func variables(pairs ...string) m {
	all := l{}
	for i := 0; i+1 < len(pairs); i += 2 {
		all = append(all, m{"name": pairs[i], "expression": pairs[i+1]})
	}
	return m{"variables": all}
}

func notes(pairs ...string) m {
	all := l{}
	for i := 0; i+1 < len(pairs); i += 2 {
		all = append(all, m{"key": pairs[i], "valueExpression": pairs[i+1]})
	}
	return m{"auditAnnotations": all}
}

func actions(all ...any) m { return m{"validationActions": all} }

func gadget(more ...m) m {
	return with(m{"apiVersion": "example.com/v1", "kind": "Gadget",
		"metadata": m{"name": "g", "namespace": "ns", "labels": m{"app": "x"}},
		"spec":     m{"n": 3, "name": "abc", "list": l{1, 2, 3}, "map": m{"a": "b"}}}, more...)
}

func param(kind, namespace, name string, max int, labels m) json.RawMessage {
	metadata := m{"name": name, "labels": labels}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	return raw(m{"apiVersion": "rules.example.com/v1", "kind": kind, "metadata": metadata, "max": max})
}

var limit = m{"paramKind": m{"apiVersion": "rules.example.com/v1", "kind": "Limit"}}
var clusterRule = m{"paramKind": m{"apiVersion": "rules.example.com/v1", "kind": "Rule"}}

func ref(more ...m) m { return m{"paramRef": with(m{"parameterNotFoundAction": "Allow"}, more...)} }

// base is a gadget that is made in a namespace that is known.
func base(name string) judged {
	return judged{Name: name,
		Namespaces: []json.RawMessage{raw(m{"apiVersion": "v1", "kind": "Namespace",
			"metadata": m{"name": "ns", "uid": "u1", "labels": m{"env": "prod"}, "creationTimestamp": "2024-01-02T03:04:05Z"},
			"spec":     m{"finalizers": l{"kubernetes"}}, "status": m{"phase": "Active"}})},
		Params: []json.RawMessage{
			param("Limit", "ns", "a", 2, m{"k": "v"}), param("Limit", "ns", "b", 5, m{"k": "v"}),
			param("Limit", "other", "c", 1, m{"k": "v"}), param("Rule", "", "r", 2, m{"k": "w"}),
		},
		Attributes: attributes{Operation: "CREATE",
			Kind:     metav1.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Gadget"},
			Resource: metav1.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "gadgets"}, Namespace: "ns", Name: "g",
			User:   user.DefaultInfo{Name: "ann", UID: "7", Groups: []string{"devs"}, Extra: map[string][]string{"x": {"y"}}},
			Object: raw(gadget()), Options: raw(m{"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"})}}
}

// one case of one policy with one binding.
func one(name string, spec m, bound m, change ...func(*judged)) judged {
	c := base(name)
	c.Policies = []json.RawMessage{policy("p", spec)}
	c.Bindings = []json.RawMessage{binding("b", "p", bound)}
	for _, change := range change {
		change(&c)
	}
	return c
}

func handMade() []judged {
	var cases []judged
	add := func(name string, spec m, bound m, change ...func(*judged)) {
		cases = append(cases, one(name, spec, bound, change...))
	}
	failing := checks("object.spec.n > 5")
	ignore := m{"failurePolicy": "Ignore"}
	update := func(c *judged) {
		c.Attributes.Operation = "UPDATE"
		c.Attributes.OldObject = raw(gadget(m{"spec": m{"n": 1}}))
	}
	remove := func(c *judged) {
		c.Attributes.Operation, c.Attributes.OldObject, c.Attributes.Object = "DELETE", c.Attributes.Object, nil
	}
	add("it passes", checks("object.spec.n == 3"), nil)
	add("it fails", failing, nil)
	add("several fail", checks("object.spec.n > 5", "true", "object.spec.n > 6"), nil)
	add("it has a message", m{"validations": l{m{"expression": "false", "message": "  no & <no>\t"}}}, nil)
	for _, reason := range []string{"Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge"} {
		add("a reason: "+reason, m{"validations": l{m{"expression": "false", "reason": reason}}}, nil)
	}
	for i, message := range []string{"'n is ' + string(object.spec.n)", "''", "'  '", "'a\\nb'", "object.none", "1", "string(object.spec.n",
		"variables.m", "authorizer.path('/x').check('get').allowed() ? 'a' : 'b'", "variables.who",
		"'x'.replace('x', 'y' + object.spec.name)", "' trimmed '"} {
		add(fmt.Sprintf("a message expression %d", i), with(variables("m", "'m' + object.spec.name", "who",
			"authorizer.path('/x').check('get').allowed() ? 'a' : 'b'"), m{"validations": l{
			m{"expression": "false", "message": "own", "messageExpression": message},
			m{"expression": "false", "messageExpression": message}}}), actions("Deny", "Audit", "Warn"))
	}
	add("a long message", with(m{"validations": l{m{"expression": "false", "message": strings.Repeat("x", 6000)},
		m{"expression": "false", "messageExpression": "object.spec.long"}}}), actions("Warn", "Audit"),
		func(c *judged) { c.Attributes.Object = raw(gadget(m{"spec": m{"long": strings.Repeat("y", 5200)}})) })
	for _, policyName := range []string{"Fail", "Ignore"} {
		failure := m{"failurePolicy": policyName}
		for i, spec := range []m{
			checks("object.none == 1"), checks("object.spec.n"), checks("object."), checks("nothing"), checks("params.max == 1"),
			conditions("object.none == 1"), conditions("object.none == 1", "false"), conditions("object.none == 1", "object.no == 2", "object.no == 2"),
			conditions("1"), conditions("object."), conditions("true", "false"), conditions("request.name == 'g'"),
			conditions("namespaceObject == null"), conditions("authorizer.requestResource.check('get').allowed()"),
			conditions("authorizer.requestResource.check('put').allowed()"), conditions("has(request.uid)", "request.kind.kind == 'Gadget'"),
			notes("k", "object.none"), notes("k", "1"), notes("k", "'a' + "), notes("k", "null", "l", "''", "m", "' x '"),
			notes("k", "object.spec.n > 1 ? 'big' : null"), notes("k", "object.spec.name", "a/b", "'x'", "", "'y'", "-", "'z'"),
			variables("a", "object.none"), variables("a", "1 +"), variables("a", "nothing"),
		} {
			spec = with(checks("variables.a == 1 || false", "false"), spec, failure)
			if _, ok := spec["variables"]; !ok {
				spec = with(spec, variables("a", "1"))
			}
			for _, bound := range []m{nil, actions("Warn", "Audit")} {
				add(fmt.Sprintf("a fault %d, %s, %d", i, policyName, len(bound)), spec, bound)
			}
		}
		add("no constraints, "+policyName, with(failing, failure, m{"matchConstraints": nil}), nil)
		add("no selector, "+policyName, with(failing, failure, m{"matchConstraints": m{"objectSelector": m{}}}), nil)
		add("no object selector, "+policyName, with(failing, failure, m{"matchConstraints": m{"namespaceSelector": m{}}}), nil)
		add("a binding without a selector, "+policyName, with(failing, failure), m{"matchResources": m{"objectSelector": m{}}})
		bad := m{"matchExpressions": l{m{"key": "a", "operator": "Odd"}}}
		add("a selector that is none, "+policyName, with(failing, failure, m{"matchConstraints": resources(m{"objectSelector": bad})}), nil)
		add("a selector of namespaces that is none, "+policyName, with(failing, failure, m{"matchConstraints": resources(m{"namespaceSelector": bad})}), nil)
		add("a selector of a binding that is none, "+policyName, with(failing, failure), m{"matchResources": resources(m{"objectSelector": bad})})
		add("params of no kind, "+policyName, with(failing, failure, m{"paramKind": m{"apiVersion": "no.example.com/v1", "kind": "None"}}), ref(m{"name": "a"}))
		add("params of no core kind, "+policyName, with(failing, failure, m{"paramKind": m{"apiVersion": "v1", "kind": "None"}}), ref(m{"name": "a"}))
		within := checks("object.spec.n <= params.max")
		for i, bound := range []m{
			ref(m{"name": "a"}), ref(m{"name": "b"}), ref(m{"name": "none"}), ref(m{"name": "c"}), ref(m{"name": "c", "namespace": "other"}),
			ref(m{"name": "none", "parameterNotFoundAction": "Deny"}), ref(m{"selector": m{}}), ref(m{"selector": m{"matchLabels": m{"k": "v"}}}),
			ref(m{"selector": m{"matchLabels": m{"k": "none"}}}), ref(m{"selector": m{"matchLabels": m{"k": "none"}}, "parameterNotFoundAction": "Deny"}),
			ref(), ref(m{"name": "a", "selector": m{}}), {}, ref(m{"selector": bad}), ref(m{"selector": m{}, "namespace": "other"}),
		} {
			add(fmt.Sprintf("params %d, %s", i, policyName), with(within, limit, failure), with(bound, actions("Deny", "Warn")))
			cluster := with(bound)
			add(fmt.Sprintf("params of the cluster %d, %s", i, policyName), with(within, clusterRule, failure), cluster)
			add(fmt.Sprintf("params for the cluster %d, %s", i, policyName), with(within, limit, failure), bound, func(c *judged) {
				c.Attributes.Namespace = ""
				c.Attributes.Object = raw(gadget(m{"metadata": m{"name": "g"}}))
			})
		}
		add("it cannot be converted, "+policyName, with(failing, failure, m{"matchConstraints": resources(m{"resourceRules": l{rule("v2")}})}), nil,
			func(c *judged) {
				c.Attributes.Object = raw(gadget(m{"metadata": m{"name": "g", "labels": m{"stays": "y"}}}))
			})
	}
	add("params in conditions and variables", with(limit, conditions("params.max > 1"), variables("max", "params.max"),
		checks("object.spec.n <= variables.max")), ref(m{"selector": m{}}))
	add("params that are not named", checks("params == null"), nil)
	add("params are null", with(limit, checks("params != null")), nil)
	add("no namespace", failing, nil, func(c *judged) { c.Namespaces = nil })
	add("no namespace to select", with(failing, m{"matchConstraints": resources(m{"namespaceSelector": m{"matchLabels": m{"a": "b"}}})}), nil,
		func(c *judged) { c.Namespaces = nil })
	for i, match := range []m{
		{"resourceRules": l{rule("v2")}}, {"resourceRules": l{rule("v2")}, "matchPolicy": "Exact"}, {"resourceRules": l{}},
		{"resourceRules": l{rule("*")}}, {"excludeResourceRules": l{rule("v1")}}, {"excludeResourceRules": l{rule("v2")}},
		{"excludeResourceRules": l{rule("v2")}, "matchPolicy": "Exact"},
		{"resourceRules": l{with(rule("v1"), m{"resourceNames": l{"g"}})}}, {"resourceRules": l{with(rule("v1"), m{"resourceNames": l{"h"}})}},
		{"resourceRules": l{with(rule("v2"), m{"resourceNames": l{"g"}})}}, {"resourceRules": l{with(rule("v2"), m{"resourceNames": l{"h"}})}},
		{"excludeResourceRules": l{with(rule("v1"), m{"resourceNames": l{"g"}})}}, {"excludeResourceRules": l{with(rule("v1"), m{"resourceNames": l{"h"}})}},
		{"resourceRules": l{with(rule("v1"), m{"operations": l{"UPDATE"}})}}, {"resourceRules": l{with(rule("v1"), m{"scope": "Cluster"})}},
		{"resourceRules": l{with(rule("v1"), m{"apiGroups": l{"old.example.com"}})}},
		{"objectSelector": m{"matchLabels": m{"app": "x"}}}, {"objectSelector": m{"matchLabels": m{"app": "y"}}},
		{"namespaceSelector": m{"matchLabels": m{"env": "prod"}}}, {"namespaceSelector": m{"matchLabels": m{"env": "test"}}},
	} {
		showing := with(checks("false", "request.resource.version == 'v1' && request.requestResource.version == 'v1'"),
			notes("seen", "object.apiVersion + ' ' + object.kind + ' ' + request.kind.group + '/' + request.kind.version + ' ' + request.resource.group + '/' + request.resource.version"))
		add(fmt.Sprintf("it matches %d", i), with(showing, m{"matchConstraints": resources(match)}), actions("Warn"))
		add(fmt.Sprintf("a binding matches %d", i), showing, with(actions("Warn"), m{"matchResources": resources(match)}))
	}
	for i, change := range []func(*judged){update, remove, func(c *judged) { c.Attributes.Subresource = "status" },
		func(c *judged) { c.Attributes.Name = "" }, func(c *judged) {
			c.Attributes.Name = ""
			c.Attributes.Object = raw(gadget(m{"metadata": m{"generateName": "gen-"}}))
		}, func(c *judged) { c.Attributes.DryRun = true }, func(c *judged) { c.Attributes.Options = nil },
		func(c *judged) { c.Attributes.Namespace = "" }, func(c *judged) { c.Attributes.User = user.DefaultInfo{} }} {
		everything := m{"matchConstraints": resources(m{"resourceRules": l{m{"apiGroups": l{"*"}, "apiVersions": l{"*"}, "resources": l{"*", "*/*"}, "operations": l{"*"}}}})}
		add(fmt.Sprintf("a request %d", i), with(everything, checks("object == null || oldObject == null", "object != null", "has(request.namespace)",
			"has(request.subResource)", "request.dryRun", "request.options == null", "namespaceObject == null", "request.userInfo.username == ''",
			"request.userInfo.extra == {}", "size(request.userInfo.groups) == 0", "request.operation == 'x'")), actions("Warn", "Deny"), change)
	}
	for i, expression := range []string{
		"namespaceObject.metadata.name == 'ns'", "namespaceObject.metadata.labels['env'] == 'prod'", "namespaceObject.metadata.none == 1",
		"has(namespaceObject.metadata.annotations)", "namespaceObject.metadata.UID == 'u1'", "namespaceObject.status.phase == 'Active'",
		"namespaceObject.spec.finalizers == ['kubernetes']", "dyn(namespaceObject).metadata.uid == 'u1'", "size(dyn(namespaceObject)) == 3",
		"size(dyn(namespaceObject.metadata)) == 4", "has(namespaceObject.status.conditions)",
		"authorizer.group('').resource('pods').namespace('ns').check('get').allowed()", "authorizer.serviceAccount('ns', 'x').path('/y').check('put').allowed()",
		"variables.none == 1", "has(variables.v)", "has(variables.none)", "variables.v == 3", "variables.?v.hasValue()", "variables.?none.hasValue()",
		"[1, 2].all(x, variables.v > x)", "variables.list.all(x, x < variables.v)", "variables.w == 4 && variables.w == 4", "false && variables.bad == 1",
		"true || variables.bad == 1", "variables.bad == 1 || true", "variables.bad == 1", "variables.bad == 1 || variables.bad == 2", "has(variables.bad)",
		"has(variables.bad.x)", "variables.worse == 1", "variables.chained == 1", "variables.object.spec.n == 3", "variables.object.?spec.?n.orValue(0) == 3",
		"variables.object[variables.key].n == 3", "object[variables.key].n == 3", "variables.quantity.isGreaterThan(quantity('1'))", "variables.v + 'x' == ''",
		"variables.optional.orValue(1) == 3", "variables.null == null", "variables.time < timestamp('2025-01-01T00:00:00Z')", "variables.mixed[0] == 1",
		"variables.list.map(x, variables.list.map(y, x * y)) == []", "variables['v'] == 3", "variables.v.x == 1", "variables == variables", "!variables.flag",
	} {
		declared := variables("v", "object.spec.n", "list", "object.spec.list", "w", "variables.v + 1", "bad", "object.none", "worse", "object. ",
			"chained", "variables.bad + 1", "object", "object", "key", "'spec'", "quantity", "quantity('2Gi')", "optional", "object.?spec.?n", "null", "null",
			"time", "timestamp('2024-01-01T00:00:00Z')", "mixed", "[1, 'a']", "flag", "variables.v == 3")
		add(fmt.Sprintf("an expression %d: %s", i, expression), with(declared, checks(expression), notes("a", "string(variables.v)")), actions("Warn", "Deny"))
	}
	big := func(c *judged) {
		list := l{}
		for i := range 2000 {
			list = append(list, fmt.Sprintf("item number %d of a list that is long", i))
		}
		c.Attributes.Object = raw(gadget(m{"spec": m{"list": list, "n": 3, "text": strings.Repeat("t", 7000)}}))
	}
	heavy := "object.spec.list.all(x, object.spec.list.all(y, x != y || x == y))"
	medium := "object.spec.text.contains(object.spec.text)"
	for _, failure := range []m{nil, ignore} {
		add(fmt.Sprintf("one costs too much %d", len(failure)), with(checks(heavy), failure), nil, big)
		add(fmt.Sprintf("a variable costs too much %d", len(failure)), with(variables("v", heavy), checks("variables.v"), failure), nil, big)
		add(fmt.Sprintf("a condition costs too much %d", len(failure)), with(conditions(heavy), failing, failure), nil, big)
		many := make([]string, 40)
		for i := range many {
			many[i] = fmt.Sprintf("%s && %d > 0", medium, i+1)
		}
		add(fmt.Sprintf("all cost too much %d", len(failure)), with(checks(many...), failure), nil, big)
		add(fmt.Sprintf("conditions cost too much %d", len(failure)), with(conditions(many...), failing, failure), nil, big)
		var pairs []string
		sum := []string{"true"}
		for i, expression := range many {
			pairs = append(pairs, fmt.Sprintf("v%d", i), expression)
			sum = append(sum, fmt.Sprintf("variables.v%d", i))
		}
		add(fmt.Sprintf("variables cost too much %d", len(failure)), with(variables(pairs...), checks(strings.Join(sum, " && ")), failure), nil, big)
		messages := l{}
		for _, expression := range many {
			messages = append(messages, m{"expression": "false", "messageExpression": expression + " ? 'a' : 'b'"})
		}
		add(fmt.Sprintf("messages cost too much %d", len(failure)), with(m{"validations": messages}, failure), actions("Warn"), big)
		var texts []string
		for i, expression := range many {
			texts = append(texts, fmt.Sprintf("k%d", i), expression+" ? 'a' : 'b'")
		}
		add(fmt.Sprintf("annotations cost too much %d", len(failure)), with(failing, notes(texts...), failure), actions("Warn"), big)
	}
	several := base("several policies and bindings")
	several.Policies = []json.RawMessage{policy("z", failing), policy("a", checks("false")), policy("unbound", checks("false")),
		policy("m", with(limit, checks("object.spec.n <= params.max"), notes("max", "string(params.max)", "same", "'s'")))}
	several.Bindings = []json.RawMessage{binding("z2", "z", actions("Warn")), binding("z1", "z", actions("Audit")), binding("a1", "a", actions("Audit", "Warn")),
		binding("m1", "m", ref(m{"name": "a"}), actions("Warn")), binding("m0", "m", ref(m{"selector": m{}})), binding("odd", "none")}
	cases = append(cases, several)
	long := one("a long annotation", notes("k", "string(object.spec.long)"), nil)
	long.Attributes.Object = raw(gadget(m{"spec": m{"long": strings.Repeat("y", 11000)}}))
	return append(cases, long)
}

// seeded are cases that are drawn.
func seeded() []judged {
	random := rand.New(rand.NewPCG(36, 7))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	terms := []string{"object.spec.n", "variables.a", "variables.b", "size(object.spec.list)", "1", "object.none", "params.max", "size(variables.l)",
		"oldObject.spec.n", "int(object.spec.name)", "object.spec.?n.orValue(2)", "size(request.userInfo.groups)", "variables.c"}
	term := func() string { return pick(terms...) }
	boolean := func() string {
		switch random.IntN(7) {
		case 0:
			return term() + pick(" < ", " == ", " != ", " >= ") + term() + pick(" && ", " || ") + term() + " > " + term()
		case 1:
			return "object.spec.list.exists(x, x " + pick("<", "==", ">") + " " + term() + ")"
		case 2:
			return "has(" + pick("object.spec.n", "object.none", "params.max", "variables.a", "namespaceObject.metadata.labels") + ")"
		case 3:
			return pick("authorizer.requestResource.check('get').allowed()", "authorizer.group('').resource('pods').check('list').allowed()", "true", "false",
				"request.operation == 'CREATE'", "params == null", "object.spec.name.startsWith('a')")
		case 4:
			return "variables.flag" + pick("", " && ", " || ") + pick("", "variables.flag")
		default:
			return term() + pick(" < ", " == ", " != ", " >= ") + term()
		}
	}
	text := func() string {
		return pick("'n is ' + string("+term()+")", "object.spec.name", "''", "string(object.spec.list)", "request.name + ' ' + request.namespace", "'a\\nb'")
	}
	var cases []judged
	for i := range 600 {
		c := base(fmt.Sprintf("seed %d", i))
		object := gadget(m{"spec": m{"n": random.IntN(6), "name": pick("abc", "7", "b"), "list": l{random.IntN(4), 2}}})
		c.Attributes.Object = raw(object)
		if random.IntN(3) == 0 {
			c.Attributes.Operation, c.Attributes.OldObject = "UPDATE", raw(gadget())
		}
		for p := range 1 + random.IntN(2) {
			spec := variables("a", term(), "b", term(), "l", pick("object.spec.list", "[1, 2]", "variables.a"), "c", pick("variables.a", "variables.b + 1", term()), "flag", boolean())
			if random.IntN(2) == 0 {
				spec = with(spec, limit)
			}
			if random.IntN(3) == 0 {
				spec["failurePolicy"] = "Ignore"
			}
			var when []string
			for range random.IntN(3) {
				when = append(when, boolean())
			}
			spec = with(spec, conditions(when...))
			all := l{}
			for range 1 + random.IntN(3) {
				check := m{"expression": boolean()}
				if random.IntN(2) == 0 {
					check["messageExpression"] = text()
				}
				if random.IntN(2) == 0 {
					check["message"] = pick("own", " own too ")
				}
				if random.IntN(3) == 0 {
					check["reason"] = pick("Forbidden", "Unauthorized", "Invalid", "RequestEntityTooLarge")
				}
				all = append(all, check)
			}
			spec = with(spec, m{"validations": all}, notes("k", text(), "l", pick(text(), "null", boolean()+" ? "+text()+" : null")))
			name := fmt.Sprintf("p%d", p)
			c.Policies = append(c.Policies, policy(name, spec))
			for b := range 1 + random.IntN(2) {
				bound := ref(m{pick("name", "name", "selector"): any("a")})["paramRef"].(m)
				if bound["selector"] != nil {
					bound["selector"] = m{}
				}
				bound["parameterNotFoundAction"] = pick("Allow", "Deny")
				chosen := []m{actions("Deny"), actions("Warn", "Audit"), actions("Deny", "Audit"), actions("Warn")}[random.IntN(4)]
				c.Bindings = append(c.Bindings, binding(fmt.Sprintf("b%d-%d", p, b), name, chosen, m{"paramRef": bound}))
			}
		}
		cases = append(cases, c)
	}
	return cases
}
