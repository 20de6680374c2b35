//go:build tools

// Package clients pins the stock clients that the stories of `tests/tests/clients` drive Skiff with.
package clients

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "helm.sh/helm/v4/cmd/helm"
)
