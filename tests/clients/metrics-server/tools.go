//go:build tools

// Package tools names the program that is built: its dependencies are not those of the other clients.
package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
