// Command operator is a controller as they are written with client-go: it leads or waits, follows ConfigMaps over protobuf,
// their metadata, and custom objects, and writes by server-side apply. What it sees goes to standard output, a JSON object a line.
//
// usage: KUBECONFIG=... operator NAMESPACE IDENTITY
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
)

const (
	protobuf = "application/vnd.kubernetes.protobuf"
	manager  = "operator"
	// It selects what is copied.
	source = "copied"
	// An annotation of those whose copy is overwritten, whoever else has changed it.
	force = "force"
)

var orders = schema.GroupVersionResource{Group: "shop.example.com", Version: "v1", Resource: "orders"}

var output sync.Mutex

func tell(what string, value any) {
	output.Lock()
	defer output.Unlock()
	line, err := json.Marshal(map[string]any{what: value})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// wire tells how lists and watches go over the wire.
type wire struct{ next http.RoundTripper }

func (w wire) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := w.next.RoundTrip(request)
	if err != nil || request.Method != http.MethodGet {
		return response, err
	}
	query, kind := request.URL.Query(), "get"
	switch {
	case query.Get("sendInitialEvents") == "true":
		kind = "watchlist"
	case query.Get("watch") != "":
		kind = "watch"
	case query.Has("limit") || query.Has("resourceVersion"):
		kind = "list"
	}
	tell("wire", map[string]any{
		"kind": kind, "path": request.URL.Path, "code": response.StatusCode,
		"type": strings.SplitN(response.Header.Get("Content-Type"), ";", 2)[0],
	})
	return response, nil
}

type operator struct {
	namespace string
	client    kubernetes.Interface
	dynamic   dynamic.Interface
	maps      cache.SharedIndexInformer
	orders    cache.SharedIndexInformer
	recorder  events.EventRecorder
	queue     workqueue.TypedRateLimitingInterface[string]
}

func main() {
	namespace, identity := os.Args[1], os.Args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		panic(err)
	}
	config.UserAgent = manager
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return wire{next} })
	typed := rest.CopyConfig(config)
	typed.ContentType, typed.AcceptContentTypes = protobuf, protobuf
	client := kubernetes.NewForConfigOrDie(typed)
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: manager},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock: lock, ReleaseOnCancel: true, Name: manager,
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 200 * time.Millisecond,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				tell("leads", identity)
				lead(ctx, namespace, client, config, typed)
			},
			OnStoppedLeading: func() { tell("stopped", identity) },
			OnNewLeader:      func(leader string) { tell("leader", leader) },
		},
	})
}

func lead(ctx context.Context, namespace string, client kubernetes.Interface, config, typed *rest.Config) {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		panic(err)
	}
	defer broadcaster.Shutdown()
	selected := func(options *metav1.ListOptions) { options.LabelSelector = source }
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(namespace), informers.WithTweakListOptions(selected))
	dynamicClient := dynamic.NewForConfigOrDie(config)
	dynamicFactory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, namespace, nil)
	metadataFactory := metadatainformer.NewFilteredSharedInformerFactory(
		metadata.NewForConfigOrDie(typed), 0, namespace, nil)
	o := operator{
		namespace: namespace, client: client, dynamic: dynamicClient,
		maps:     factory.Core().V1().ConfigMaps().Informer(),
		orders:   dynamicFactory.ForResource(orders).Informer(),
		recorder: broadcaster.NewRecorder(scheme.Scheme, manager),
		queue:    workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]()),
	}
	seen := metadataFactory.ForResource(corev1.SchemeGroupVersion.WithResource("configmaps")).Informer()
	handle(o.maps, func(name string) { o.queue.Add("map/" + name) })
	handle(o.orders, func(name string) { o.queue.Add("order/" + name) })
	handle(seen, func(name string) { tell("metadata", name) })
	factory.Start(ctx.Done())
	dynamicFactory.Start(ctx.Done())
	metadataFactory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), o.maps.HasSynced, o.orders.HasSynced, seen.HasSynced) {
		return
	}
	tell("synced", len(o.maps.GetStore().List()))
	_, err := client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{})
	tell("secrets", fmt.Sprint(apierrors.ReasonForError(err)))
	go func() {
		<-ctx.Done()
		o.queue.ShutDown()
	}()
	for {
		key, closed := o.queue.Get()
		if closed {
			return
		}
		if err := o.sync(ctx, key); err != nil && ctx.Err() == nil {
			tell("error", err.Error())
			o.queue.AddRateLimited(key)
		} else {
			o.queue.Forget(key)
		}
		o.queue.Done(key)
	}
}

func handle(informer cache.SharedIndexInformer, changed func(name string)) {
	told := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			changed(key[strings.Index(key, "/")+1:])
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: told, UpdateFunc: func(_, object any) { told(object) }, DeleteFunc: told,
	})
	if err != nil {
		panic(err)
	}
}

func (o *operator) sync(ctx context.Context, key string) error {
	kind, name, _ := strings.Cut(key, "/")
	if kind == "order" {
		return o.order(ctx, name)
	}
	object, exists, err := o.maps.GetStore().GetByKey(o.namespace + "/" + name)
	if err != nil || !exists {
		return err
	}
	original := object.(*corev1.ConfigMap)
	owner := applymeta.OwnerReference().WithAPIVersion("v1").WithKind("ConfigMap").
		WithName(name).WithUID(original.UID).WithController(true)
	wanted := applycore.ConfigMap(name+"-copy", o.namespace).WithData(original.Data).WithOwnerReferences(owner)
	options := metav1.ApplyOptions{FieldManager: manager, Force: original.Annotations[force] == "true"}
	copied, err := o.client.CoreV1().ConfigMaps(o.namespace).Apply(ctx, wanted, options)
	if apierrors.IsConflict(err) {
		tell("conflict", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	// It is to know what is its own.
	own, err := applycore.ExtractConfigMap(copied, manager)
	if err != nil {
		return err
	}
	tell("copied", map[string]any{"name": name, "data": own.Data})
	o.recorder.Eventf(original, copied, corev1.EventTypeNormal, "Copied", "Copying", "copied to %s", copied.Name)
	return nil
}

func (o *operator) order(ctx context.Context, name string) error {
	object, exists, err := o.orders.GetStore().GetByKey(o.namespace + "/" + name)
	if err != nil || !exists {
		return err
	}
	size, _, err := unstructured.NestedInt64(object.(*unstructured.Unstructured).Object, "spec", "size")
	if err != nil {
		return err
	}
	status := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "shop.example.com/v1", "kind": "Order",
		"metadata": map[string]any{"name": name}, "status": map[string]any{"size": size},
	}}
	options := metav1.ApplyOptions{FieldManager: manager}
	_, err = o.dynamic.Resource(orders).Namespace(o.namespace).ApplyStatus(ctx, name, status, options)
	return err
}
