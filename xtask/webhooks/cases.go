package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

type fields map[string]any

func raw(value any) json.RawMessage {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return text
}

// with is a document with other fields; nil takes one away.
func with(base fields, changes fields) fields {
	out := maps.Clone(base)
	for key, value := range changes {
		if value == nil {
			delete(out, key)
		} else {
			out[key] = value
		}
	}
	return out
}

func everything() []any {
	return []any{fields{"apiGroups": []string{"*"}, "apiVersions": []string{"*"}, "resources": []string{"*/*"},
		"operations": []string{"*"}, "scope": "*"}}
}

func rulesOf(version string) []any {
	return []any{fields{"apiGroups": []string{"example.com"}, "apiVersions": []string{version},
		"resources": []string{"gadgets"}, "operations": []string{"*"}, "scope": "*"}}
}

// hook is a webhook at a path of its own name.
func hook(name string, changes fields) fields {
	base := fields{
		"name": name, "admissionReviewVersions": []string{"v1", "v1beta1"}, "sideEffects": "None", "failurePolicy": "Fail",
		"matchPolicy": "Equivalent", "timeoutSeconds": 10, "namespaceSelector": fields{}, "objectSelector": fields{},
		"rules": everything(), "clientConfig": service(name),
	}
	return with(base, changes)
}

func service(path string) fields {
	return fields{"service": fields{"namespace": serviceNamespace, "name": serviceName, "path": "/" + path, "port": 443}}
}

func configuration(name string, hooks ...any) json.RawMessage {
	return raw(fields{"metadata": fields{"name": name}, "webhooks": hooks})
}

var gadget = fields{"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": fields{"name": "g", "namespace": "ns",
	"labels": fields{"new": "yes"}}, "spec": fields{"n": 2, "list": []any{1, 2}}}
var oldGadget = fields{"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": fields{"name": "g", "namespace": "ns",
	"labels": fields{"old": "yes"}}, "spec": fields{"n": 1}}

func update() attributes {
	return attributes{
		Operation: "UPDATE",
		Kind:      metav1.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Gadget"},
		Resource:  metav1.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "gadgets"},
		Namespace: "ns", Name: "g",
		User: user.DefaultInfo{Name: "jane", UID: "42", Groups: []string{"a", "system:authenticated"},
			Extra: map[string][]string{"example.com/key": {"x", "y"}, "a": {}}},
		Object: raw(gadget), OldObject: raw(oldGadget),
		Options: raw(fields{"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl"}),
	}
}

func change(base attributes, by func(*attributes)) attributes {
	by(&base)
	return base
}

func create() attributes {
	return change(update(), func(a *attributes) {
		a.Operation, a.OldObject = "CREATE", nil
		a.Options = raw(fields{"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"})
	})
}

func remove() attributes {
	return change(update(), func(a *attributes) {
		a.Operation, a.Object = "DELETE", nil
		a.Options = raw(fields{"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "propagationPolicy": "Background"})
	})
}

func reviewed(version string, response fields) reply {
	return reply{Status: 200, Headers: map[string]string{"Content-Type": "application/json"}, Body: string(raw(fields{
		"apiVersion": "admission.k8s.io/" + version, "kind": "AdmissionReview", "response": with(fields{"uid": "$UID"}, response)}))}
}

func allowed(more fields) reply { return reviewed("v1", with(fields{"allowed": true}, more)) }
func denied(more fields) reply  { return reviewed("v1", with(fields{"allowed": false}, more)) }

func patched(operations ...any) reply {
	return allowed(fields{"patchType": "JSONPatch", "patch": base64.StdEncoding.EncodeToString(raw(operations))})
}

func operation(op, path string, value any) fields {
	return fields{"op": op, "path": path, "value": value}
}

func plain(status int, body string) reply {
	return reply{Status: status, Headers: map[string]string{"Content-Type": "application/json"}, Body: body}
}

// of is a case of one webhook, at /a.
func of(name string, a attributes, changes fields, answer reply) admitted {
	return admitted{Name: name, Attributes: a, Configurations: []json.RawMessage{configuration("one", hook("a", changes))},
		Replies: map[string]reply{"/a": answer}}
}

func both(c admitted) []admitted {
	other := c
	other.Mutating = true
	return []admitted{c, other}
}

func mutatingOnly(c admitted) []admitted {
	c.Mutating = true
	return []admitted{c}
}

func admissionCases() []admitted {
	var all []admitted
	for _, cases := range [][]admitted{requestCases(), answerCases(), matchCases(), conditionCases(), patchCases(), orderCases()} {
		all = append(all, cases...)
	}
	for i := range all {
		c := &all[i]
		if c.Namespaces == nil {
			c.Namespaces = []json.RawMessage{raw(fields{"metadata": fields{"name": "ns", "labels": fields{"team": "red"}}})}
		}
		for path, answer := range c.Replies {
			if answer.Status == 0 && !answer.Hangup {
				answer = allowed(nil)
				c.Replies[path] = answer
			}
		}
	}
	return all
}

// requestCases are about what is asked.
func requestCases() []admitted {
	var out []admitted
	add := func(name string, a attributes, changes fields) {
		out = append(out, both(of(name, a, changes, reply{}))...)
	}
	add("an update", update(), nil)
	add("an update in v1beta1", update(), fields{"admissionReviewVersions": []string{"v1beta1", "v1"}})
	add("a creation", create(), nil)
	add("a creation without a name", change(create(), func(a *attributes) { a.Name = "" }), nil)
	add("a deletion", remove(), nil)
	add("a deletion of no options", change(remove(), func(a *attributes) { a.Options = nil }), nil)
	add("a deletion of many", change(remove(), func(a *attributes) { a.OldObject, a.Name = nil, "" }), nil)
	add("a connection", change(update(), func(a *attributes) {
		a.Operation, a.Subresource, a.OldObject, a.Options = "CONNECT", "exec", nil, nil
		a.Kind = metav1.GroupVersionKind{Version: "v1", Kind: "PodExecOptions"}
		a.Resource = metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
		a.Object = raw(fields{"apiVersion": "v1", "kind": "PodExecOptions", "stdin": true, "command": []string{"a"}})
	}), nil)
	add("a subresource", change(update(), func(a *attributes) { a.Subresource = "status" }), nil)
	add("a dry run", change(update(), func(a *attributes) { a.DryRun = true }), nil)
	add("a dry run of some side effects", change(update(), func(a *attributes) { a.DryRun = true }), fields{"sideEffects": "Some"})
	add("a dry run of unknown side effects", change(update(), func(a *attributes) { a.DryRun = true }),
		fields{"sideEffects": "Unknown", "failurePolicy": "Ignore"})
	add("a dry run of side effects elsewhere", change(update(), func(a *attributes) { a.DryRun = true }), fields{"sideEffects": "NoneOnDryRun"})
	add("side effects and no dry run", update(), fields{"sideEffects": "Some"})
	add("a user of nothing", change(update(), func(a *attributes) { a.User = user.DefaultInfo{} }), nil)
	add("a cluster's object", change(update(), func(a *attributes) {
		a.Namespace = ""
		a.Object, a.OldObject = raw(with(gadget, fields{"metadata": fields{"name": "g"}})), raw(with(oldGadget, fields{"metadata": fields{"name": "g"}}))
	}), nil)
	add("no version of the review is known", update(), fields{"admissionReviewVersions": []string{"v7"}})
	add("no version is known and failures are ignored", update(), fields{"admissionReviewVersions": []string{}, "failurePolicy": "Ignore"})
	add("another time-out", update(), fields{"timeoutSeconds": 3})
	add("no certificate", update(), fields{"clientConfig": with(service("a"), fields{"caBundle": "bm9uc2Vuc2U="})})
	add("nowhere", update(), fields{"clientConfig": fields{}})
	add("a service that is not there", update(), fields{"clientConfig": fields{"service": fields{"namespace": "system", "name": "missing", "port": 443}}})
	add("a service that is not there and failures are ignored", update(), fields{"failurePolicy": "Ignore",
		"clientConfig": fields{"service": fields{"namespace": "system", "name": "missing", "port": 443}}})
	for _, kind := range []string{"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "ValidatingAdmissionPolicy",
		"ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "Other"} {
		add("of a "+kind, change(update(), func(a *attributes) {
			a.Kind.Group, a.Kind.Kind = "admissionregistration.k8s.io", kind
			a.Object = raw(with(gadget, fields{"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind}))
			a.OldObject = a.Object
		}), nil)
	}
	return out
}

// answerCases are about what is answered.
func answerCases() []admitted {
	var out []admitted
	add := func(name string, answer reply) {
		for _, policy := range []string{"Fail", "Ignore"} {
			out = append(out, both(of(name+", "+policy, update(), fields{"failurePolicy": policy}, answer))...)
		}
	}
	add("allowed", allowed(nil))
	add("denied", denied(nil))
	add("denied with a message", denied(fields{"status": fields{"message": "no \"way\""}}))
	add("denied with a reason", denied(fields{"status": fields{"reason": "Because"}}))
	add("denied with all", denied(fields{"status": fields{"message": "no", "reason": "Forbidden", "code": 403, "status": "Failure",
		"details": fields{"name": "n", "group": "g", "kind": "k", "uid": "u", "retryAfterSeconds": 3,
			"causes": []any{fields{"reason": "r", "message": "m", "field": "f"}, fields{"message": "only"}}},
		"metadata": fields{"resourceVersion": "1"}, "unknown": 1}}))
	add("denied with a success", denied(fields{"status": fields{"status": "Success", "code": 200, "message": "fine"}}))
	add("denied with another status", denied(fields{"status": fields{"status": "Odd", "code": 418}}))
	add("denied with a large code", denied(fields{"status": fields{"code": 1000}}))
	add("denied with warnings and annotations", denied(fields{"warnings": []string{"w1", "", "w2"},
		"auditAnnotations": fields{"key": "value", "not a key": "x", "a/b": "y"}}))
	add("allowed with warnings and annotations", allowed(fields{"warnings": []string{"w1", "w1", "w\n2"},
		"auditAnnotations": fields{"key": "value", "": "x"}, "status": fields{"message": "ignored"}}))
	add("another uid", allowed(fields{"uid": "other"}))
	add("no uid", allowed(fields{"uid": nil}))
	add("no response", plain(200, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`))
	add("no kind", plain(200, `{"response":{"uid":"$UID","allowed":true}}`))
	add("no version", plain(200, `{"kind":"AdmissionReview","response":{"uid":"$UID","allowed":true}}`))
	add("another version", reviewed("v1beta1", fields{"allowed": true}))
	add("another group", plain(200, `{"apiVersion":"admission/v1","kind":"AdmissionReview","response":{"uid":"$UID","allowed":true}}`))
	add("another kind", plain(200, `{"apiVersion":"admission.k8s.io/v1","kind":"Review","response":{"uid":"$UID","allowed":true}}`))
	add("a Status", plain(200, `{"apiVersion":"v1","kind":"Status","status":"Failure","message":"no"}`))
	add("a Status of an error", plain(403, `{"apiVersion":"v1","kind":"Status","status":"Failure","message":"no entry","reason":"Forbidden","code":403}`))
	add("an error", plain(500, ``))
	add("not found", plain(404, ``))
	add("a redirect to nowhere", plain(300, ``))
	add("nothing", plain(200, ``))
	add("half", plain(200, `{"apiVersion":`))
	add("a list", plain(200, `[]`))
	add("null", plain(200, `null`))
	add("hung up", reply{Hangup: true})
	add("cut off", reply{Status: 200, Body: `{}`, Short: true})
	add("allowed is a text", allowed(fields{"allowed": "true"}))
	add("allowed is a number", allowed(fields{"allowed": 1}))
	add("allowed is not there", reviewed("v1", nil))
	add("warnings are a text", allowed(fields{"warnings": "w"}))
	add("warnings are numbers", allowed(fields{"warnings": []int{1}}))
	add("annotations are a list", allowed(fields{"auditAnnotations": []int{1}}))
	add("annotations are numbers", allowed(fields{"auditAnnotations": fields{"a": 1}}))
	add("status is a text", denied(fields{"status": "no"}))
	add("code is a text", denied(fields{"status": fields{"code": "403"}}))
	add("code is a fraction", denied(fields{"status": fields{"code": 403.5}}))
	add("code is huge", denied(fields{"status": fields{"code": 99999999999}}))
	add("causes are a text", denied(fields{"status": fields{"details": fields{"causes": "c"}}}))
	add("a cause is a text", denied(fields{"status": fields{"details": fields{"causes": []string{"c"}}}}))
	add("a reason of a cause is a number", denied(fields{"status": fields{"details": fields{"causes": []any{fields{"reason": 1}}}}}))
	add("response is a text", plain(200, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":"yes"}`))
	add("a patch that is no base64", allowed(fields{"patch": "abc$", "patchType": "JSONPatch"}))
	add("a patch that is half of base64", allowed(fields{"patch": "abcde", "patchType": "JSONPatch"}))
	add("a patch that is a list", allowed(fields{"patch": []any{fields{}}, "patchType": "JSONPatch"}))
	add("a patch without a type", allowed(fields{"patch": "W10="}))
	add("a type without a patch", allowed(fields{"patchType": "JSONPatch"}))
	add("a type of nothing", allowed(fields{"patch": "W10=", "patchType": ""}))
	add("another type of patch", allowed(fields{"patch": base64.StdEncoding.EncodeToString([]byte(`[{"op":"remove","path":"/spec"}]`)), "patchType": "MergePatch"}))
	add("an empty patch", patched())
	add("again a little later", reply{Status: 503, Headers: map[string]string{"Retry-After": "0"}, Then: []reply{allowed(nil)}})
	beta := func(name string, answer reply) {
		c := of("v1beta1: "+name, update(), fields{"admissionReviewVersions": []string{"v1beta1"}}, answer)
		out = append(out, both(c)...)
	}
	beta("allowed", reviewed("v1beta1", fields{"allowed": true}))
	beta("no kind and no uid", plain(200, `{"response":{"allowed":true}}`))
	beta("denied", plain(200, `{"response":{"allowed":false,"status":{"message":"no"}}}`))
	beta("no response", plain(200, `{}`))
	beta("v1", allowed(nil))
	beta("a patch without a type", reviewed("v1beta1", fields{"allowed": true, "patch": base64.StdEncoding.EncodeToString([]byte(`[{"op":"replace","path":"/spec/n","value":9}]`))}))
	beta("a patch of another type", reviewed("v1beta1", fields{"allowed": true, "patchType": "Odd", "patch": base64.StdEncoding.EncodeToString([]byte(`[{"op":"replace","path":"/spec/n","value":9}]`))}))
	return out
}

// matchCases are about whether a webhook is asked.
func matchCases() []admitted {
	var out []admitted
	add := func(name string, a attributes, changes fields) {
		out = append(out, both(of(name, a, changes, reply{}))...)
	}
	red, blue := fields{"matchLabels": fields{"team": "red"}}, fields{"matchLabels": fields{"team": "blue"}}
	namespace := func(operation string) attributes {
		return change(update(), func(a *attributes) {
			a.Operation, a.Namespace, a.Name = operation, "ns", "ns"
			a.Kind = metav1.GroupVersionKind{Version: "v1", Kind: "Namespace"}
			a.Resource = metav1.GroupVersionResource{Version: "v1", Resource: "namespaces"}
			blue := raw(fields{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": "ns", "labels": fields{"team": "blue"}}})
			a.Object, a.OldObject = blue, blue
			if operation == "DELETE" {
				a.Object = nil
			}
			if operation == "CREATE" {
				a.OldObject = nil
			}
		})
	}
	gone := change(update(), func(a *attributes) { a.Namespace = "gone" })
	for i, selector := range []fields{red, blue} {
		name := []string{"red", "blue"}[i]
		add("a namespace's labels are "+name, update(), fields{"namespaceSelector": selector})
		add("a namespace that is gone is "+name, gone, fields{"namespaceSelector": selector})
		add("a namespace that is made is "+name, namespace("CREATE"), fields{"namespaceSelector": selector})
		add("a namespace that changes is "+name, namespace("UPDATE"), fields{"namespaceSelector": selector})
		add("a namespace that goes is "+name, namespace("DELETE"), fields{"namespaceSelector": selector})
		add("a cluster's object is "+name, change(update(), func(a *attributes) { a.Namespace = "" }), fields{"namespaceSelector": selector})
		add("the status of a namespace is "+name, change(namespace("UPDATE"), func(a *attributes) { a.Subresource = "status" }), fields{"namespaceSelector": selector})
	}
	add("a namespace that is gone and no selector", gone, nil)
	add("a namespace that is gone and no rule", gone, fields{"namespaceSelector": red, "rules": rulesOf("v7")})
	add("no namespace selector", update(), fields{"namespaceSelector": nil})
	add("no object selector", update(), fields{"objectSelector": nil})
	for _, operator := range []string{"In", "NotIn", "Exists", "DoesNotExist"} {
		expression := fields{"key": "team", "operator": operator}
		if strings.HasSuffix(operator, "In") {
			expression["values"] = []string{"red", "green"}
		}
		add("a namespace by "+operator, update(), fields{"namespaceSelector": fields{"matchExpressions": []any{expression}}})
	}
	for _, label := range []string{"old", "new", "none"} {
		selector := fields{"objectSelector": fields{"matchLabels": fields{label: "yes"}}}
		add("an object's label is "+label, update(), selector)
		add("a new object's label is "+label, create(), selector)
		add("a gone object's label is "+label, remove(), selector)
	}
	add("no object and a selector", change(remove(), func(a *attributes) { a.OldObject = nil }), fields{"objectSelector": fields{"matchLabels": fields{"a": "b"}}})
	add("no object and a selector of what is not", change(remove(), func(a *attributes) { a.OldObject = nil }),
		fields{"objectSelector": fields{"matchExpressions": []any{fields{"key": "a", "operator": "DoesNotExist"}}}})
	for _, policy := range []string{"Exact", "Equivalent"} {
		add("the same version, "+policy, update(), fields{"rules": rulesOf("v1"), "matchPolicy": policy})
		add("another version, "+policy, update(), fields{"rules": rulesOf("v2"), "matchPolicy": policy})
		add("a version that is none, "+policy, update(), fields{"rules": rulesOf("v3"), "matchPolicy": policy})
		add("both versions, "+policy, update(), fields{"rules": append(rulesOf("v2"), rulesOf("v1")...), "matchPolicy": policy})
		old := []any{fields{"apiGroups": []string{"old.example.com"}, "apiVersions": []string{"*"}, "resources": []string{"gadgets", "gadgets/status"}, "operations": []string{"*"}}}
		add("another group, "+policy, update(), fields{"rules": old, "matchPolicy": policy})
		add("a subresource of another group, "+policy, change(update(), func(a *attributes) { a.Subresource = "status" }), fields{"rules": old, "matchPolicy": policy})
		add("a deletion of another version, "+policy, remove(), fields{"rules": rulesOf("v2"), "matchPolicy": policy})
	}
	add("no match policy", update(), fields{"rules": rulesOf("v2"), "matchPolicy": nil})
	add("no rules", update(), fields{"rules": []any{}})
	return out
}

// conditionCases are about expressions.
func conditionCases() []admitted {
	var out []admitted
	add := func(name string, a attributes, changes fields, expressions ...string) {
		conditions := []any{}
		for i, expression := range expressions {
			conditions = append(conditions, fields{"name": fmt.Sprintf("c%d", i), "expression": expression})
		}
		for _, policy := range []string{"Fail", "Ignore"} {
			c := of(name+", "+policy, a, with(fields{"matchConditions": conditions, "failurePolicy": policy}, changes), reply{})
			out = append(out, both(c)...)
		}
	}
	add("yes", update(), nil, "true")
	add("no", update(), nil, "false")
	add("yes and no", update(), nil, "true", "false")
	add("of the object", update(), nil, "object.spec.n == 2 && oldObject.spec.n == 1")
	add("of no object", remove(), nil, "object == null && oldObject != null")
	add("of no old object", create(), nil, "oldObject == null")
	add("of the request", update(), nil, "request.name == 'g' && request.namespace == 'ns' && request.operation == 'UPDATE' && request.dryRun == false",
		"request.userInfo.username == 'jane' && request.userInfo.uid == '42' && 'a' in request.userInfo.groups && request.userInfo.extra['example.com/key'] == ['x', 'y']",
		"request.kind.kind == 'Gadget' && request.resource.resource == 'gadgets' && request.requestKind.version == 'v1' && request.requestResource.group == 'example.com'",
		"request.options.fieldManager == 'kubectl' && !has(request.subResource)")
	add("of a subresource", change(update(), func(a *attributes) { a.Subresource = "status" }), nil, "request.subResource == 'status' && request.requestSubResource == 'status'")
	add("of the object in the request", update(), nil, "has(request.object)")
	add("of no options", change(update(), func(a *attributes) { a.Options = nil }), nil, "request.options == null")
	add("of no options that are asked for", change(update(), func(a *attributes) { a.Options = nil }), nil, "has(request.options)")
	add("of the namespace", update(), nil, "namespaceObject == null")
	add("of rights", update(), nil, "authorizer.group('').resource('pods').check('get').allowed()", "!authorizer.requestResource.check('list').allowed()")
	add("a fault", update(), nil, "object.spec.nothing == 1")
	add("a fault and a no", update(), nil, "object.spec.nothing == 1", "false")
	add("a fault and a yes", update(), nil, "object.spec.nothing == 1", "true")
	add("two faults", update(), nil, "object.spec.nothing == 1", "object.x[0]")
	add("the same fault twice", update(), nil, "object.spec.nothing == 1", "object.spec.nothing == 1")
	add("a fault without a name", change(create(), func(a *attributes) { a.Name = "" }), nil, "object.spec.nothing == 1")
	add("no expression", update(), nil, "a b")
	add("no answer", update(), nil, "1")
	add("no bool", update(), nil, "object.spec.n")
	add("in another version", update(), fields{"rules": rulesOf("v2")}, "object.apiVersion == 'example.com/v2' && request.kind.version == 'v2' && request.requestKind.version == 'v1'")
	add("in another version, the resource", update(), fields{"rules": rulesOf("v2")}, "request.resource.version == 'v1'")
	add("of no match", update(), fields{"rules": rulesOf("v7")}, "object.spec.nothing == 1")
	add("too much", update(), nil, "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a < 11))))))")
	much := "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, a < 11)))))"
	add("too much together", update(), nil, much, much, much, much, much, much)
	return out
}

// patchCases are about what a mutating webhook makes of an object.
func patchCases() []admitted {
	var out []admitted
	add := func(name string, a attributes, changes fields, answer reply) {
		out = append(out, mutatingOnly(of(name, a, changes, answer))...)
	}
	text := func(patch string) reply {
		return allowed(fields{"patchType": "JSONPatch", "patch": base64.StdEncoding.EncodeToString([]byte(patch))})
	}
	add("a field is set", update(), nil, patched(operation("add", "/spec/x", "y")))
	add("fields are set", update(), nil, patched(operation("add", "/spec/list/-", 3), operation("remove", "/metadata/labels/new", nil), operation("replace", "/spec/n", 5)))
	add("nothing is changed", update(), nil, patched(operation("replace", "/spec/n", 2)))
	add("nothing but a default is changed", update(), nil, patched(operation("test", "/spec/n", 2)))
	add("a creation is changed", create(), nil, patched(operation("add", "/metadata/annotations", fields{"a": "b"})))
	add("a deletion is changed", remove(), nil, patched(operation("add", "/spec/x", "y")))
	add("a deletion is not changed", remove(), nil, patched())
	add("a test fails", update(), nil, patched(operation("test", "/spec/n", 3)))
	add("a path is missing", update(), nil, patched(operation("add", "/a/b/c", 3)))
	add("a path is missing and failures are ignored", update(), fields{"failurePolicy": "Ignore"}, patched(operation("remove", "/a", nil)))
	add("an operation is none", update(), nil, patched(operation("increase", "/spec/n", 3)))
	add("the patch is an object", update(), nil, text(`{"spec":{}}`))
	add("the patch is no JSON", update(), nil, text(`nonsense`))
	add("the patch is null", update(), nil, text(`null`))
	add("the patch is of numbers", update(), nil, text(`[1]`))
	add("the kind is changed", update(), nil, patched(operation("replace", "/kind", "Other")))
	add("the version is changed", update(), nil, patched(operation("replace", "/apiVersion", "example.com/v2")))
	add("the kind is removed", update(), nil, patched(operation("remove", "/kind", nil)))
	add("all is replaced", update(), nil, patched(operation("replace", "", fields{"apiVersion": "example.com/v1", "kind": "Gadget", "spec": fields{}})))
	add("all is replaced by a list", update(), nil, patched(operation("replace", "", []int{1})))
	add("a patch of another version", update(), fields{"rules": rulesOf("v2")}, patched(operation("add", "/spec/x", "y")))
	add("a denial with a patch", update(), nil, func() reply {
		return denied(fields{"patchType": "JSONPatch", "patch": base64.StdEncoding.EncodeToString([]byte(`[{"op":"remove","path":"/spec"}]`))})
	}())
	return out
}

// orderCases are about several webhooks.
func orderCases() []admitted {
	var out []admitted
	append_ := func(value string) reply { return patched(operation("add", "/spec/list/-", value)) }
	several := func(name string, replies map[string]reply, configurations ...json.RawMessage) admitted {
		return admitted{Name: name, Attributes: update(), Configurations: configurations, Replies: replies}
	}
	abc := func(changes ...fields) []json.RawMessage {
		hooks := []any{}
		for i, change := range changes {
			hooks = append(hooks, hook(string(rune('a'+i)), change))
		}
		return []json.RawMessage{configuration("one", hooks...)}
	}
	out = append(out, mutatingOnly(several("by name of configuration, then in order", map[string]reply{
		"/a": append_("a"), "/b": append_("b"), "/c": append_("c"), "/d": append_("d")},
		configuration("y", hook("a", nil), hook("b", nil)), configuration("x", hook("c", nil)), configuration("z", hook("d", nil))))...)
	out = append(out, both(several("the first denial is told", map[string]reply{
		"/a": allowed(nil), "/b": denied(fields{"status": fields{"message": "first"}}), "/c": allowed(nil)}, abc(nil, nil, nil)...))...)
	out = append(out, both(several("none applies", map[string]reply{}, abc(fields{"rules": []any{}}, fields{"rules": []any{}})...))...)
	out = append(out, both(several("no configurations", map[string]reply{}))...)
	out = append(out, both(several("a failure that is ignored, and others", map[string]reply{
		"/a": plain(500, ""), "/b": allowed(fields{"warnings": []string{"w"}})}, abc(fields{"failurePolicy": "Ignore"}, nil)...))...)
	out = append(out, both(several("an error of a condition before any is called", map[string]reply{"/a": allowed(nil), "/b": allowed(nil)},
		abc(nil, fields{"matchConditions": []any{fields{"name": "x", "expression": "object.nothing"}}})...))...)
	out = append(out, mutatingOnly(several("a change is seen by the next", map[string]reply{
		"/a": patched(operation("add", "/metadata/labels/late", "yes")), "/b": allowed(nil), "/c": allowed(nil)},
		abc(nil, fields{"objectSelector": fields{"matchLabels": fields{"late": "yes"}}},
			fields{"matchConditions": []any{fields{"name": "x", "expression": "object.metadata.labels.late == 'yes'"}}})...))...)
	out = append(out, mutatingOnly(several("versions take turns", map[string]reply{
		"/a": append_("a"), "/b": append_("b"), "/c": append_("c"), "/d": allowed(nil)},
		abc(fields{"rules": rulesOf("v2")}, fields{"rules": rulesOf("v1")}, fields{"rules": rulesOf("v2")}, fields{"rules": rulesOf("v1")})...))...)
	again := fields{"reinvocationPolicy": "IfNeeded"}
	never := fields{"reinvocationPolicy": "Never"}
	out = append(out, mutatingOnly(several("an earlier one is asked again", map[string]reply{
		"/a": allowed(nil), "/b": append_("b")}, abc(again, never)...))...)
	out = append(out, mutatingOnly(several("the one that changes is not asked again", map[string]reply{
		"/a": allowed(nil), "/b": append_("b")}, abc(never, again)...))...)
	out = append(out, mutatingOnly(several("all that want are asked again", map[string]reply{
		"/a": append_("a"), "/b": append_("b"), "/c": append_("c")}, abc(again, again, again)...))...)
	out = append(out, mutatingOnly(several("none is asked again if nothing changes", map[string]reply{
		"/a": allowed(nil), "/b": patched(operation("replace", "/spec/n", 2))}, abc(again, again)...))...)
	changed := several("others have changed the object since", map[string]reply{"/a": allowed(nil), "/b": append_("b"), "/c": allowed(nil)}, abc(never, again, again)...)
	changed.Between = raw(with(gadget, fields{"spec": fields{"n": 7, "list": []any{}}}))
	out = append(out, mutatingOnly(changed)...)
	late := several("one that matches only then is not asked", map[string]reply{"/a": allowed(nil), "/b": patched(operation("add", "/metadata/labels/late", "yes"))},
		abc(with(again, fields{"objectSelector": fields{"matchLabels": fields{"late": "yes"}}}), never)...)
	out = append(out, mutatingOnly(late)...)
	out = append(out, mutatingOnly(several("a failure that is ignored and asked again", map[string]reply{
		"/a": plain(500, ""), "/b": append_("b")}, abc(with(again, fields{"failurePolicy": "Ignore"}), never)...))...)
	twice := several("two of one name", map[string]reply{"/a": allowed(nil), "/b": append_("b")},
		configuration("one", hook("a", again), with(hook("a", again), fields{"clientConfig": service("b")})))
	out = append(out, mutatingOnly(twice)...)
	return out
}
