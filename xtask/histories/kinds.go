package main

import (
	"fmt"
	"math/rand/v2"
	"sort"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is how random documents of a kind are made. They are small and have few values, so that managers meet.
type kind struct {
	gvk schema.GroupVersionKind
	// By subresource, what cannot be written through it.
	reset    map[string][][]any
	document func(*generator) map[string]any
	// A change of a whole object.
	change func(*generator, map[string]any)
	status func(*generator) any
}

var withStatus = map[string][][]any{"": {{"status"}}, "status": {{"spec"}}}

var kinds = []kind{
	{
		gvk:      schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
		reset:    map[string][][]any{"": {{"status"}}, "status": {{"spec"}, {"metadata", "labels"}}},
		document: deployment,
		change:   func(g *generator, o map[string]any) { changeWith(g, o, deployment) },
		status: func(g *generator) any {
			return map[string]any{"replicas": g.one(0, 1, 2), "conditions": g.conditions("Available", "Progressing")}
		},
	},
	{
		gvk:      schema.GroupVersionKind{Version: "v1", Kind: "Service"},
		reset:    withStatus,
		document: service,
		change:   func(g *generator, o map[string]any) { changeWith(g, o, service) },
		status: func(g *generator) any {
			return map[string]any{
				"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": g.one("10.0.0.1", "10.0.0.2")}}},
				"conditions":   g.conditions("Ready", "Stable"),
			}
		},
	},
	{
		gvk:      schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"},
		reset:    map[string][][]any{"": {}},
		document: configMap,
		change:   func(g *generator, o map[string]any) { changeWith(g, o, configMap) },
	},
	{
		gvk: schema.GroupVersionKind{Version: "v1", Kind: "Pod"},
		reset: map[string][][]any{
			"":       {{"status"}},
			"status": {{"spec"}, {"metadata", "deletionTimestamp"}, {"metadata", "ownerReferences"}},
		},
		document: pod,
		change:   func(g *generator, o map[string]any) { changeWith(g, o, pod) },
		status: func(g *generator) any {
			return map[string]any{"phase": g.one("Pending", "Running"), "conditions": g.conditions("Ready", "PodScheduled"),
				"podIPs": []any{map[string]any{"ip": g.one("10.1.0.1", "10.1.0.2")}}}
		},
	},
}

// generator makes values.
type generator struct{ random *rand.Rand }

func (g *generator) one(values ...any) any { return values[g.random.IntN(len(values))] }

func (g *generator) yes(oneIn int) bool { return g.random.IntN(oneIn) == 0 }

// some is a map of some of the keys.
func (g *generator) some(keys []string, value func() any) map[string]any {
	out := map[string]any{}
	for _, key := range keys {
		if g.yes(2) {
			out[key] = value()
		}
	}
	return out
}

func (g *generator) texts(keys ...string) map[string]any {
	return g.some(keys, func() any { return g.one("1", "2", "a<b") })
}

// shuffled is some of the items in any order.
func (g *generator) shuffled(items ...any) []any {
	g.random.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	return items[:g.random.IntN(len(items)+1)]
}

func (g *generator) metadata(name string) map[string]any {
	metadata := map[string]any{"name": name, "namespace": "default"}
	if g.yes(2) {
		metadata["labels"] = g.texts("a", "b", "c")
	}
	if g.yes(3) {
		metadata["annotations"] = g.texts("x", "y")
	}
	if g.yes(4) {
		metadata["finalizers"] = g.shuffled("example.com/1", "example.com/2", "example.com/3")
	}
	if g.yes(5) {
		owner := func(uid string) any {
			return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "name": g.one("o", "p"), "uid": uid}
		}
		metadata["ownerReferences"] = g.shuffled(owner("u1"), owner("u2"))
	}
	return metadata
}

func (g *generator) conditions(types ...string) []any {
	var out []any
	for _, name := range types {
		if g.yes(2) {
			out = append(out, map[string]any{"type": name, "status": g.one("True", "False"), "reason": "R",
				"lastTransitionTime": "2023-01-01T00:00:00Z"})
		}
	}
	return out
}

// managedFields is what clients send who think they know better.
func (g *generator) managedFields(version string) any {
	entry := func(fields map[string]any) map[string]any {
		return map[string]any{"manager": "told", "operation": "Update", "apiVersion": version, "time": "2023-11-01T00:00:00Z",
			"fieldsType": "FieldsV1", "fieldsV1": fields}
	}
	invalid := entry(map[string]any{"k:x": map[string]any{}})
	noType := entry(map[string]any{})
	delete(noType, "fieldsType")
	return g.one(
		[]any{},
		[]any{map[string]any{}},
		[]any{entry(map[string]any{"f:metadata": map[string]any{"f:labels": map[string]any{"f:a": map[string]any{}}}})},
		[]any{invalid},
		[]any{noType},
		nil,
	)
}

func (g *generator) container(name string) any {
	c := map[string]any{"name": name}
	if !g.yes(6) {
		c["image"] = g.one("i:1", "i:2")
	}
	if g.yes(3) {
		port := func(n int, protocol string) any {
			p := map[string]any{"containerPort": n}
			if protocol != "" {
				p["protocol"] = protocol
			}
			if g.yes(3) {
				p["name"] = g.one("p", "q")
			}
			return p
		}
		c["ports"] = g.shuffled(port(80, ""), port(443, "TCP"), port(53, "UDP"), port(53, "TCP"))
	}
	if g.yes(3) {
		env := func(name string) any { return map[string]any{"name": name, "value": g.one("1", "2")} }
		c["env"] = g.shuffled(env("A"), env("B"), env("C"))
	}
	if g.yes(4) {
		c["resources"] = map[string]any{"limits": g.some([]string{"cpu", "memory"}, func() any { return g.one("1", "2", "500m") })}
	}
	if g.yes(4) {
		c["args"] = g.shuffled("x", "y", "z")
	}
	if g.yes(5) {
		c["securityContext"] = g.one(nil, map[string]any{}, map[string]any{"runAsUser": 1},
			map[string]any{"capabilities": map[string]any{"drop": []any{"ALL"}}})
	}
	return c
}

func (g *generator) podSpec() map[string]any {
	spec := map[string]any{"containers": append(g.shuffled(g.container("b"), g.container("c")), g.container("a"))}
	if g.yes(4) {
		volume := func(name string) any {
			return g.one(map[string]any{"name": name, "emptyDir": map[string]any{}},
				map[string]any{"name": name, "configMap": map[string]any{"name": "c"}})
		}
		spec["volumes"] = g.shuffled(volume("v"), volume("w"))
	}
	if g.yes(4) {
		spec["nodeSelector"] = g.texts("disk", "zone")
	}
	if g.yes(5) {
		spec["tolerations"] = g.shuffled(map[string]any{"key": "k", "operator": "Exists"}, map[string]any{"key": "l", "operator": "Exists"})
	}
	if g.yes(5) {
		spec["imagePullSecrets"] = g.shuffled(map[string]any{"name": "s"}, map[string]any{"name": "t"})
	}
	if g.yes(5) {
		spec["affinity"] = map[string]any{"nodeAffinity": map[string]any{"requiredDuringSchedulingIgnoredDuringExecution": map[string]any{
			"nodeSelectorTerms": []any{map[string]any{"matchExpressions": []any{
				map[string]any{"key": g.one("a", "b"), "operator": "Exists"}}}}}}}
	}
	if g.yes(6) {
		spec["terminationGracePeriodSeconds"] = g.one(1, 30, nil)
	}
	if g.yes(6) {
		spec["topologySpreadConstraints"] = g.shuffled(
			map[string]any{"topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": g.one(1, 2)},
			map[string]any{"topologyKey": "h", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1})
	}
	return spec
}

func deployment(g *generator) map[string]any {
	spec := map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "d"}}}
	template := map[string]any{"spec": g.podSpec()}
	if g.yes(2) {
		template["metadata"] = map[string]any{"labels": g.texts("app", "tier")}
	}
	spec["template"] = template
	if g.yes(2) {
		spec["replicas"] = g.one(1, 2, 3, nil)
	}
	if g.yes(3) {
		spec["strategy"] = g.one(map[string]any{"type": "RollingUpdate",
			"rollingUpdate": map[string]any{"maxSurge": g.one(1, "50%")}}, map[string]any{})
	}
	return map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": g.metadata("d"), "spec": spec}
}

func service(g *generator) map[string]any {
	port := func(number int, protocol string) any {
		p := map[string]any{"port": number}
		if protocol != "" {
			p["protocol"] = protocol
		}
		if g.yes(2) {
			p["name"] = g.one("p", "q")
		}
		if g.yes(3) {
			p["targetPort"] = g.one(8080, "http", number)
		}
		return p
	}
	spec := map[string]any{"ports": g.shuffled(port(80, ""), port(80, "UDP"), port(443, "TCP"))}
	if g.yes(2) {
		spec["selector"] = g.texts("app", "tier")
	}
	if g.yes(3) {
		spec["type"] = g.one("ClusterIP", "NodePort", "LoadBalancer")
	}
	if g.yes(4) {
		spec["externalIPs"] = g.shuffled("1.1.1.1", "2.2.2.2")
	}
	return map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": g.metadata("s"), "spec": spec}
}

func configMap(g *generator) map[string]any {
	object := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": g.metadata("c")}
	if !g.yes(6) {
		object["data"] = g.some([]string{"a", "b", "c", "d"}, func() any { return g.one("1", "2", "") })
	}
	if g.yes(5) {
		object["immutable"] = g.one(false, nil)
	}
	if g.yes(5) {
		object["binaryData"] = g.some([]string{"x", "y"}, func() any { return g.one("AA==", "AQ==") })
	}
	return object
}

func pod(g *generator) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": g.metadata("p"), "spec": g.podSpec()}
}

// changeWith takes something of the object away, or gives it something of another document.
func changeWith(g *generator, object map[string]any, document func(*generator) map[string]any) {
	if g.yes(3) {
		at := object
		for {
			names := sortedNames(at)
			if len(names) == 0 {
				return
			}
			name := names[g.random.IntN(len(names))]
			switch name {
			case "apiVersion", "kind", "status", "name", "namespace", "uid", "managedFields", "selector", "strategy":
				return // No object is without them.
			}
			below, ok := at[name].(map[string]any)
			if !ok || g.yes(5) && name != "metadata" && name != "spec" {
				delete(at, name)
				return
			}
			at = below
		}
	}
	lay(object, document(g))
}

// lay is a merge patch.
func lay(object, patch map[string]any) {
	for name, value := range patch {
		below, ok := object[name].(map[string]any)
		if of, isMap := value.(map[string]any); ok && isMap {
			lay(below, of)
		} else if value == nil {
			delete(object, name)
		} else {
			object[name] = value
		}
	}
}

// spoil makes a document one that is not of its kind's type.
func (k kind) spoil(g *generator, document map[string]any) {
	switch g.random.IntN(8) {
	case 0:
		document["nonsense"] = 1
	case 1:
		document["metadata"].(map[string]any)["labels"] = "text"
	case 2:
		document["metadata"].(map[string]any)["finalizers"] = []any{"a/a", "a/a"}
	case 3:
		document["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{"uid": 7}}
	case 4:
		document["metadata"].(map[string]any)["managedFields"] = []any{}
	case 5:
		document["apiVersion"] = "example.com/v1"
	case 6:
		document["metadata"].(map[string]any)["finalizers"] = []any{nil}
	case 7:
		document["spec"] = []any{fmt.Sprint("no map")}
	}
}

func sortedNames(of map[string]any) []string {
	names := make([]string, 0, len(of))
	for name := range of {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
