package main

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// builders are the groups and versions that Skiff serves.
var builders = []func(*runtime.Scheme) error{
	admissionregistrationv1.AddToScheme, appsv1.AddToScheme, authenticationv1.AddToScheme,
	authorizationv1.AddToScheme, autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme,
	certificatesv1.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme, discoveryv1.AddToScheme,
	eventsv1.AddToScheme, flowcontrolv1.AddToScheme, networkingv1.AddToScheme, nodev1.AddToScheme,
	policyv1.AddToScheme, rbacv1.AddToScheme, resourcev1.AddToScheme, schedulingv1.AddToScheme,
	storagev1.AddToScheme, storagemigrationv1.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme,
	metricsv1beta1.AddToScheme,
}

// metaTypes are answered and read beside the kinds themselves, all as "v1" or "meta.k8s.io/v1".
var metaTypes = map[schema.GroupVersion][]runtime.Object{
	{Version: "v1"}: {
		&metav1.Status{}, &metav1.APIGroup{}, &metav1.APIGroupList{}, &metav1.APIResourceList{},
		&metav1.APIVersions{},
	},
	{Group: "meta.k8s.io", Version: "v1"}: {
		&metav1.DeleteOptions{}, &metav1.PartialObjectMetadata{}, &metav1.PartialObjectMetadataList{},
	},
}

type kind struct {
	gvk    schema.GroupVersionKind
	goType reflect.Type
}

// notServed are in the packages, and never sent to or by an API server as protobuf.
var notServed = map[string]bool{
	"ConversionReview": true, "RangeAllocation": true, "SerializedReference": true,
}

// allKinds are sorted; lists follow from their items and are left out.
func allKinds() (*runtime.Scheme, []kind, error) {
	scheme := runtime.NewScheme()
	for _, build := range builders {
		if err := build(scheme); err != nil {
			return nil, nil, err
		}
	}
	var kinds []kind
	for gvk, goType := range scheme.AllKnownTypes() {
		// Options and events of watches are in every group, out of the package of meta types.
		isMeta := strings.HasSuffix(goType.PkgPath(), "apis/meta/v1")
		isList := strings.HasSuffix(gvk.Kind, "List")
		isOptions := strings.HasSuffix(gvk.Kind, "Options")
		if gvk.Version == runtime.APIVersionInternal || isMeta || isList || isOptions || notServed[gvk.Kind] {
			continue
		}
		kinds = append(kinds, kind{gvk, goType})
	}
	for gv, objects := range metaTypes {
		for _, object := range objects {
			goType := reflect.TypeOf(object).Elem()
			scheme.AddKnownTypes(gv, object)
			kinds = append(kinds, kind{gv.WithKind(goType.Name()), goType})
		}
	}
	sort.Slice(kinds, func(i, j int) bool { return kinds[i].gvk.String() < kinds[j].gvk.String() })
	if len(kinds) < 70 {
		return nil, nil, fmt.Errorf("only %d kinds", len(kinds))
	}
	return scheme, kinds, nil
}
