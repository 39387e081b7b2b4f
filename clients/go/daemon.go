package runed

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// dialPause is the time between two tries to connect to a daemon whose queue of connections is full.
	dialPause = 20 * time.Millisecond
	// dialPatience is how long to try so.
	dialPatience = 30 * time.Second
	// ensureGrace is how long "runed ensure" may clean up after it was told to stop.
	ensureGrace = 5 * time.Second
)

// daemon is a daemon, running or not.
type daemon struct {
	home     string
	socket   string
	maySpawn bool
	spawning chan struct{} // holds one element while somebody runs "runed ensure"
}

func newDaemon(c *config) (*daemon, error) {
	home, socket, err := locate(c)
	if err != nil {
		return nil, err
	}
	return &daemon{home: home, socket: socket, maySpawn: home != "" && !c.noSpawn, spawning: make(chan struct{}, 1)}, nil
}

// dial connects to the daemon's socket.
func (d *daemon) dial(ctx context.Context) (net.Conn, error) {
	if err := checkSocketDir(d.socket); err != nil {
		return nil, err
	}
	// net/http lets a dial outlive the call that asked for it, so the context alone may never end.
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var dialer net.Dialer
	for {
		connection, err := dialer.DialContext(ctx, "unix", d.socket)
		if err == nil {
			return connection, nil
		}
		switch {
		case errors.Is(err, syscall.EAGAIN): // more connections than fit wait to be accepted
			if pause(ctx, dialPause) != nil {
				return nil, newError(ErrDaemonUnavailable, nil, "the daemon on %s takes no connections; it is overloaded or stopped", d.socket)
			}
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
			return nil, newError(ErrDaemonUnavailable, nil,
				"no daemon listens on %s; start one with `runed ensure` or `runed`", d.socket)
		case ctx.Err() != nil:
			return nil, errorOfContext(ctx)
		default:
			var cause syscall.Errno
			errors.As(err, &cause)
			return nil, newError(ErrForeignPath, nil,
				"%s cannot be connected to: %s; set RUNED_HOME to another place", d.socket, cause)
		}
	}
}

// ensure sees to it that a daemon listens, and tells whether one was started for that.
func (d *daemon) ensure(ctx context.Context) (started bool, err error) {
	select {
	case d.spawning <- struct{}{}:
		defer func() { <-d.spawning }()
	case <-ctx.Done():
		return false, errorOfContext(ctx)
	}
	connection, err := d.dial(ctx)
	if err == nil {
		return false, connection.Close()
	}
	if !d.maySpawn || !errors.Is(err, ErrDaemonUnavailable) {
		return false, err
	}
	return d.spawn(ctx)
}

// spawn runs "runed ensure --json", which starts the daemon unless somebody else does, and waits until it listens.
func (d *daemon) spawn(ctx context.Context) (started bool, err error) {
	program, err := findProgram(d.home)
	if err != nil {
		return false, err
	}
	command := exec.CommandContext(ctx, program, "ensure", "--json")
	command.Env = append(os.Environ(), "RUNED_HOME="+d.home)
	// A killed one could leave a daemon behind that it had started but not heard of yet.
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = ensureGrace
	output, failure := command.Output()
	if ctx.Err() != nil {
		return false, errorOfContext(ctx)
	}
	var answer struct {
		Socket  string
		Started bool
		Error   struct {
			Reason  Reason
			Message string
		}
	}
	switch err := json.Unmarshal(output, &answer); {
	case err == nil && answer.Error.Reason != "":
		return false, newError(answer.Error.Reason, nil, "%s", answer.Error.Message)
	case failure != nil:
		return false, newError(ErrDaemonStartFailed, nil, "`%s ensure --json` failed: %s", program, describe(failure))
	case err != nil || answer.Socket == "":
		return false, newError(ErrDaemonStartFailed, nil,
			"`%s ensure --json` answered something else than where the daemon is; is it another program's?", program)
	case answer.Socket != d.socket:
		return false, newError(ErrDaemonStartFailed, nil,
			"`%s` serves %s instead of %s; use a version of it that fits this client", program, answer.Socket, d.socket)
	}
	return answer.Started, nil
}

// describe tells why a program failed, with the last line that it wrote to its standard error.
func describe(failure error) string {
	var exit *exec.ExitError
	if !errors.As(failure, &exit) {
		return failure.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(exit.Stderr)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return exit.Error() + ": " + last
	}
	return exit.Error()
}
