// Package runed is a client of runed, the daemon that shares one embedding model between all processes of a machine.
//
// [Connect] connects to the daemon. If none runs, it starts one by the command "runed". Any number of goroutines may use a
// [Client]. It waits while the daemon fetches its engine and model, starts a daemon that went away again, and repeats a call that
// the daemon was too busy for. Every error is an [*Error] with a [Reason], which [errors.Is] compares.
//
// The package works on Linux and macOS.
package runed
