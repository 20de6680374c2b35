//go:build tools

// Package etcd pins the store of upstream's API server.
package etcd

import _ "go.etcd.io/etcd/server/v3"
