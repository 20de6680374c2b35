//go:build tools

// Package coredns pins the DNS server that upstream's clusters run.
package coredns

import _ "github.com/coredns/coredns"
