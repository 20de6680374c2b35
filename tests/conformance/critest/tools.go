//go:build tools

// Package critest pins upstream's tests of CRI servers: this module only names what
// `cargo xtask conformance` builds from the Go module cache.
package critest

import _ "sigs.k8s.io/cri-tools/pkg/validate"
