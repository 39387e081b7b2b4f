// Package runed is a client of runed, the daemon that shares one embedding model between all processes of a machine.
//
// [Connect] dials the daemon, and starts it by the command "runed" if none runs. The [Client] that it gives serves any number
// of goroutines. It waits while the daemon fetches its engine and model, starts a daemon again that went away, and repeats a
// call that the daemon was too busy for; every error is a [*Error], with a [Reason] to compare with by [errors.Is].
//
// Linux and macOS only.
package runed
