module runed.dev/clients/go

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261026165753-2ffab32bce7e
	google.golang.org/protobuf v1.36.12
	runed.dev/gen/go v0.1.0
)

replace runed.dev/gen/go => ../../gen/go
