// Package interop checks that programs which were written for the gRPC service runed.v1 work unchanged: with grpc-go over a UNIX
// socket, by the contract as it was then (proto/). It shares no code with this project's own client.
package interop
