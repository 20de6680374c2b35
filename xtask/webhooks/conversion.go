package main

import (
	"encoding/json"
	"fmt"
	"strings"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/utils/ptr"
)

// converted is one conversion: what was to be converted, what the webhook answered, and what came of it.
type converted struct {
	Name     string   `json:"name"`
	Versions []string `json:"reviewVersions"`
	// The kind of the list where a list is converted, or of the object.
	List    bool              `json:"list,omitempty"`
	Objects []json.RawMessage `json:"objects"`
	To      string            `json:"to"`
	Reply   reply             `json:"reply"`
	Calls   []call            `json:"calls"`
	Error   string            `json:"error,omitempty"`
	Result  []json.RawMessage `json:"result,omitempty"`
}

const one = `{"apiVersion":"example.com/v1","kind":"Gadget","metadata":{"name":"a","namespace":"ns","uid":"u1",` +
	`"resourceVersion":"7","labels":{"a":"b"},"annotations":{"x":"y"},"managedFields":[{"manager":"m"}]},"spec":{"n":1}}`
const two = `{"apiVersion":"example.com/v1","kind":"Gadget","metadata":{"name":"b","namespace":"ns","uid":"u2"},"spec":{}}`
const newer = `{"apiVersion":"example.com/v2","kind":"Gadget","metadata":{"name":"c","namespace":"ns","uid":"u3"},"spec":{}}`
const bare = `{"apiVersion":"example.com/v1","kind":"Gadget"}`

func as(object, from, to string) string {
	if !strings.Contains(object, from) {
		panic(from + " is not in " + object)
	}
	return strings.ReplaceAll(object, from, to)
}

func next(object string) string { return as(object, "example.com/v1", "example.com/v2") }

func answered(version string, status string, objects ...string) reply {
	return reply{Status: 200, Headers: map[string]string{"Content-Type": "application/json"}, Body: fmt.Sprintf(
		`{"apiVersion":"apiextensions.k8s.io/%s","kind":"ConversionReview","response":{"uid":"$UID","result":%s,"convertedObjects":[%s]}}`,
		version, status, strings.Join(objects, ","))}
}

func answers(objects ...string) reply { return answered("v1", `{"status":"Success"}`, objects...) }

func conversionCases() []converted {
	json := func(status int, body string) reply {
		return reply{Status: status, Headers: map[string]string{"Content-Type": "application/json"}, Body: body}
	}
	text := func(status int, body string) reply {
		return reply{Status: status, Headers: map[string]string{"Content-Type": "text/plain"}, Body: body}
	}
	meta := func(old, new string) reply { return answers(as(next(one), old, new)) }
	review := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"ConversionReview"`
	cases := []converted{
		{Name: "one object", Reply: answers(next(one))},
		{Name: "v1beta1", Versions: []string{"v1beta1"}, Reply: answered("v1beta1", `{"status":"Success"}`, next(one))},
		{Name: "the first version that is known", Versions: []string{"v7", "v1beta1", "v1"}, Reply: answered("v1beta1", `{"status":"Success"}`, next(one))},
		{Name: "no version is known", Versions: []string{"v7"}, Reply: answers(next(one))},
		{Name: "no versions", Versions: []string{}, Reply: answers(next(one))},
		{Name: "a v1beta1 answer needs no uid and no kind", Versions: []string{"v1beta1"}, Reply: json(200, `{"response":{"result":{"status":"Success"},"convertedObjects":[`+next(one)+`]}}`)},
		{Name: "a list", List: true, Objects: raws(one, newer, two), Reply: answers(next(one), next(two))},
		{Name: "a list of none to convert", List: true, Objects: raws(newer, newer)},
		{Name: "an empty list", List: true, Objects: raws()},
		{Name: "an object of that version", Objects: raws(newer)},
		{Name: "an object of nothing", Objects: raws(bare)},
		{Name: "too few", List: true, Objects: raws(one, two), Reply: answers(next(one))},
		{Name: "too many", Reply: answers(next(one), next(two))},
		{Name: "none", Reply: answers()},
		{Name: "another order", List: true, Objects: raws(one, two), Reply: answers(next(two), next(one))},
		{Name: "another uid", Reply: json(200, review+`,"response":{"uid":"x","result":{"status":"Success"},"convertedObjects":[`+next(one)+`]}}`)},
		{Name: "no uid", Reply: json(200, review+`,"response":{"result":{"status":"Success"},"convertedObjects":[`+next(one)+`]}}`)},
		{Name: "no response", Reply: json(200, review+`}`)},
		{Name: "a null response", Reply: json(200, review+`,"response":null}`)},
		{Name: "no response of v1beta1", Versions: []string{"v1beta1"}, Reply: json(200, `{}`)},
		{Name: "no kind", Reply: json(200, `{"response":{"uid":"$UID","result":{"status":"Success"},"convertedObjects":[`+next(one)+`]}}`)},
		{Name: "another version of the review", Reply: answered("v1beta1", `{"status":"Success"}`, next(one))},
		{Name: "v1 for v1beta1", Versions: []string{"v1beta1"}, Reply: answered("v1", `{"status":"Success"}`, next(one))},
		{Name: "another kind of answer", Reply: json(200, `{"apiVersion":"example.com/v1","kind":"Other"}`)},
		{Name: "a Status that failed", Reply: json(200, `{"apiVersion":"v1","kind":"Status","status":"Failure","message":"no","code":403}`)},
		{Name: "a Status that succeeded", Reply: json(200, `{"apiVersion":"v1","kind":"Status","status":"Success"}`)},
		{Name: "refused with words", Reply: answered("v1", `{"status":"Failure","message":"I will not"}`)},
		{Name: "refused without words", Reply: answered("v1", `{"status":"Failure"}`)},
		{Name: "no result", Reply: answered("v1", `{}`, next(one))},
		{Name: "a null result", Reply: answered("v1", `null`, next(one))},
		{Name: "refused by v1beta1", Versions: []string{"v1beta1"}, Reply: answered("v1beta1", `{"status":"Failure","message":"I will not"}`)},
		{Name: "another group", Reply: meta("example.com/v2", "other.com/v2")},
		{Name: "the same version again", Reply: answers(one)},
		{Name: "another kind", Reply: meta("Gadget", "Widget")},
		{Name: "another name", Reply: meta(`"name":"a"`, `"name":"b"`)},
		{Name: "no name", Reply: meta(`"name":"a",`, ``)},
		{Name: "another namespace", Reply: meta(`"ns"`, `"other"`)},
		{Name: "another uid of the object", Reply: meta(`"u1"`, `"u9"`)},
		{Name: "no metadata", Reply: answers(`{"apiVersion":"example.com/v2","kind":"Gadget"}`)},
		{Name: "metadata is a text", Reply: answers(`{"apiVersion":"example.com/v2","kind":"Gadget","metadata":"x"}`)},
		{Name: "labels and annotations change", Reply: meta(`"labels":{"a":"b"},"annotations":{"x":"y"}`, `"labels":{"c":"d"},"annotations":{}`)},
		{Name: "labels go", Reply: meta(`"labels":{"a":"b"},"annotations":{"x":"y"},`, ``)},
		{Name: "labels are null", Reply: meta(`{"a":"b"}`, `null`)},
		{Name: "other metadata is put back", Reply: meta(`"resourceVersion":"7"`, `"resourceVersion":"9","generation":4,"finalizers":["f"]`)},
		{Name: "labels are a list", Reply: meta(`{"a":"b"}`, `["a"]`)},
		{Name: "a label is a number", Reply: meta(`{"a":"b"}`, `{"a":1}`)},
		{Name: "a label is null", Reply: meta(`{"a":"b"}`, `{"a":null}`)},
		{Name: "an annotation is an object", Reply: meta(`{"x":"y"}`, `{"x":{}}`)},
		{Name: "an annotation is a fraction", Reply: meta(`{"x":"y"}`, `{"x":1.5}`)},
		{Name: "an annotation is a list", Reply: meta(`{"x":"y"}`, `{"x":[]}`)},
		{Name: "an annotation is true", Reply: meta(`{"x":"y"}`, `{"x":true}`)},
		{Name: "a wrong label", Reply: meta(`{"a":"b"}`, `{"-":"b"}`)},
		{Name: "a wrong value of a label", Reply: meta(`{"a":"b"}`, `{"a":"-"}`)},
		{Name: "a wrong annotation", Reply: meta(`{"x":"y"}`, `{"x y":"y"}`)},
		{Name: "annotations of any case", Reply: meta(`{"x":"y"}`, `{"X.Com/Y":"y"}`)},
		{Name: "an item of a list is another", List: true, Objects: raws(newer, one, two), Reply: answers(next(one), as(next(two), `"u2"`, `"u9"`))},
		{Name: "an item of a list is of another kind", List: true, Objects: raws(one, two), Reply: answers(next(one), as(next(two), `Gadget`, `Widget`))},
		{Name: "an item of a list is of another version", List: true, Objects: raws(one, two), Reply: answers(one, next(two))},
		{Name: "an item of a list has no metadata", List: true, Objects: raws(two), Reply: answers(`{"apiVersion":"example.com/v2","kind":"Gadget"}`)},
		{Name: "an item of a list has wrong labels", List: true, Objects: raws(one), Reply: meta(`{"a":"b"}`, `{"a":"-"}`)},
		{Name: "a converted object is null", Reply: answers(`null`)},
		{Name: "a converted object is a number", Reply: answers(`1`)},
		{Name: "a converted object is a list", Reply: answers(`[]`)},
		{Name: "a converted item is a text", List: true, Objects: raws(one), Reply: answers(`"x"`)},
		{Name: "a converted object has no kind", Reply: answers(`{"apiVersion":"example.com/v2"}`)},
		{Name: "a converted object has no version", Reply: answers(`{"kind":"Gadget","metadata":{}}`)},
		{Name: "a converted item has no kind", List: true, Objects: raws(one), Reply: answers(`{"apiVersion":"example.com/v2"}`)},
		{Name: "an object of a version that is none", Objects: raws(as(one, "example.com/v1", "example.com/v9"))},
		{Name: "a version that is none", To: "example.com/v9"},
		{Name: "an item of a version that is none", List: true, Objects: raws(one, as(one, "example.com/v1", "example.com/v9"))},
		{Name: "no JSON", Reply: json(200, `nonsense`)},
		{Name: "half of JSON", Reply: json(200, `{"apiVersion":"apiextensions.k8s.io/v1","kind":`)},
		{Name: "a JSON list", Reply: json(200, `[]`)},
		{Name: "a JSON text", Reply: json(200, `"x"`)},
		{Name: "nothing", Reply: json(200, ``)},
		{Name: "nothing of no type", Reply: reply{Status: 200}},
		{Name: "no type", Reply: func() reply { r := answers(next(one)); r.Headers = nil; return r }()},
		{Name: "another type", Reply: func() reply {
			r := answers(next(one))
			r.Headers = map[string]string{"Content-Type": "text/html; charset=utf-8"}
			return r
		}()},
		{Name: "a type that is none", Reply: func() reply {
			r := answers(next(one))
			r.Headers = map[string]string{"Content-Type": "application/"}
			return r
		}()},
		{Name: "a type of two words", Reply: func() reply {
			r := answers(next(one))
			r.Headers = map[string]string{"Content-Type": "a b"}
			return r
		}()},
		{Name: "created", Reply: func() reply { r := answers(next(one)); r.Status = 201; return r }()},
		{Name: "response is a list", Reply: json(200, review+`,"response":[]}`)},
		{Name: "uid is a number", Reply: json(200, review+`,"response":{"uid":1}}`)},
		{Name: "result is a text", Reply: json(200, review+`,"response":{"uid":"$UID","result":"x"}}`)},
		{Name: "status is a number", Reply: json(200, review+`,"response":{"uid":"$UID","result":{"status":1}}}`)},
		{Name: "code is a text", Reply: json(200, review+`,"response":{"uid":"$UID","result":{"status":"Failure","code":"x"}}}`)},
		{Name: "converted objects are an object", Reply: json(200, review+`,"response":{"uid":"$UID","convertedObjects":{}}}`)},
		{Name: "converted objects are null", Reply: json(200, review+`,"response":{"uid":"$UID","result":{"status":"Success"},"convertedObjects":null}}`)},
		{Name: "kind is a number", Reply: json(200, `{"kind":1}`)},
		{Name: "apiVersion is of many parts", Reply: json(200, `{"apiVersion":"a/b/c","kind":"ConversionReview"}`)},
		{Name: "hung up", Reply: reply{Hangup: true}},
		{Name: "cut off", Reply: reply{Status: 200, Body: `{}`, Short: true}},
		{Name: "a Status of an error", Reply: json(403, `{"apiVersion":"v1","kind":"Status","status":"Failure","message":"no entry","reason":"Forbidden","code":403}`)},
		{Name: "a Status of an error of no version", Reply: json(500, `{"kind":"Status","status":"Failure","message":"no entry"}`)},
		{Name: "a Status of an error that says success", Reply: json(500, `{"kind":"Status","apiVersion":"v1","status":"Success","message":"no entry"}`)},
		{Name: "a Status of an error without words", Reply: json(500, `{"kind":"Status","apiVersion":"v1","status":"Failure"}`)},
		{Name: "a review of an error", Reply: func() reply { r := answers(next(one)); r.Status = 500; return r }()},
	}
	for _, status := range []int{300, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 415, 418, 422, 429, 500, 502, 503, 504, 599} {
		cases = append(cases,
			converted{Name: fmt.Sprintf("%d of JSON", status), Reply: json(status, `{"a":1}`)},
			converted{Name: fmt.Sprintf("%d of nothing", status), Reply: json(status, ``)})
	}
	cases = append(cases,
		converted{Name: "403 of text", Reply: text(403, "some words\n")},
		converted{Name: "500 of text", Reply: text(500, "some \"words\"\n")},
		converted{Name: "503 of text", Reply: text(503, "some words\n")},
		converted{Name: "again a little later", Reply: reply{Status: 503, Headers: map[string]string{"Retry-After": "0"},
			Then: []reply{{Status: 429, Headers: map[string]string{"Retry-After": "-1"}}, answers(next(one))}}},
		converted{Name: "again and again", Reply: reply{Status: 429, Headers: map[string]string{"Retry-After": "0", "Content-Type": "application/json"}}},
		converted{Name: "not again by a date", Reply: reply{Status: 503, Headers: map[string]string{
			"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Content-Type": "application/json"}}})
	return cases
}

func raws(objects ...string) []json.RawMessage {
	out := []json.RawMessage{}
	for _, object := range objects {
		out = append(out, json.RawMessage(object))
	}
	return out
}

func conversions(w *world) ([]converted, error) {
	factory, err := conversion.NewCRConverterFactory(w, func(r webhook.AuthenticationInfoResolver) webhook.AuthenticationInfoResolver { return r })
	if err != nil {
		return nil, err
	}
	cases := conversionCases()
	for i := range cases {
		c := &cases[i]
		if c.Objects == nil {
			c.Objects = raws(one)
		}
		if c.Versions == nil {
			c.Versions = []string{"v1", "v1beta1"}
		}
		if c.To == "" {
			c.To = "example.com/v2"
		}
		if c.Reply.Status == 0 && !c.Reply.Hangup {
			c.Reply.Status = 500
		}
		if err := convert(w, factory, c); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return cases, nil
}

func convert(w *world, factory *conversion.CRConverterFactory, c *converted) error {
	crd := &v1.CustomResourceDefinition{}
	crd.Name = "gadgets.example.com"
	crd.Spec.Group, crd.Spec.Scope = "example.com", v1.NamespaceScoped
	crd.Spec.Versions = []v1.CustomResourceDefinitionVersion{{Name: "v1"}, {Name: "v2"}}
	crd.Spec.Conversion = &v1.CustomResourceConversion{Strategy: v1.WebhookConverter, Webhook: &v1.WebhookConversion{
		ConversionReviewVersions: c.Versions,
		ClientConfig: &v1.WebhookClientConfig{CABundle: w.ca, Service: &v1.ServiceReference{
			Namespace: serviceNamespace, Name: serviceName, Path: ptr.To("/convert"), Port: ptr.To[int32](443)}},
	}}
	w.answering(map[string]reply{"/convert": c.Reply})
	safe, _, err := factory.NewConverter(crd)
	if err != nil {
		return err
	}
	var in runtime.Object
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "GadgetList"}}
	for _, raw := range c.Objects {
		item := unstructured.Unstructured{}
		if err := json.Unmarshal(raw, &item.Object); err != nil {
			return err
		}
		list.Items = append(list.Items, item)
	}
	if c.List {
		in = list
	} else {
		in = &list.Items[0]
	}
	to, err := schema.ParseGroupVersion(c.To)
	if err != nil {
		return err
	}
	out, err := safe.ConvertToVersion(in, to)
	c.Calls = w.asked(false)
	// Ten attempts are one another's likes.
	for len(c.Calls) > 3 {
		c.Calls = c.Calls[:1]
	}
	if err != nil {
		c.Error = w.anonymous(err.Error())
		return nil
	}
	var items []unstructured.Unstructured
	switch out := out.(type) {
	case *unstructured.UnstructuredList:
		items = out.Items
	case *unstructured.Unstructured:
		items = []unstructured.Unstructured{*out}
	}
	c.Result = []json.RawMessage{}
	for _, item := range items {
		raw, err := json.Marshal(item.Object)
		if err != nil {
			return err
		}
		c.Result = append(c.Result, raw)
	}
	return nil
}
