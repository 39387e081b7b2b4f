package runed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// ensureGrace is how long "runed ensure" may go on after its time is over, if the caller sets no limit.
const ensureGrace = 5 * time.Second

// stopGrace is how long "runed ensure" may go on after it was told to stop. By this, a call may exceed its limit.
const stopGrace = 500 * time.Millisecond

// daemon is a daemon, running or not.
type daemon struct {
	home     string
	socket   string
	maySpawn bool
	spawning chan struct{} // holds one element while a goroutine looks for the daemon or starts it
	asked    record        // the older daemon that "runed ensure" was asked to replace; guarded by spawning
}

func newDaemon(c *config) (*daemon, error) {
	home, socket, err := locate(c)
	if err != nil {
		return nil, err
	}
	return &daemon{home: home, socket: socket, maySpawn: home != "" && !c.noSpawn, spawning: make(chan struct{}, 1)}, nil
}

// dial connects to the daemon's socket. It waits while more connections than fit wait to be accepted.
func (d *daemon) dial(ctx context.Context) (net.Conn, error) {
	// The context alone is no limit: net/http lets a dial outlive the call that asked for it.
	limited, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	for {
		connection, err := d.dialOnce(limited)
		if !errors.Is(err, syscall.EAGAIN) {
			return connection, err
		}
		if pause(limited, dialPause) == nil {
			continue
		}
		if ctx.Err() != nil {
			return nil, errorOfContext(ctx)
		}
		return nil, newError(ErrDeadlineExceeded, nil,
			"the daemon on %s took no connection within %v; it is overloaded or stopped", d.socket, dialPatience)
	}
}

// dialOnce connects to the daemon's socket. The error is EAGAIN if more connections than fit wait to be accepted.
func (d *daemon) dialOnce(ctx context.Context) (net.Conn, error) {
	if err := checkSocketDir(d.socket); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", d.socket)
	switch {
	case err == nil:
		if err := d.checkListener(connection); err != nil {
			connection.Close()
			return nil, err
		}
		return connection, nil
	case errors.Is(err, syscall.EAGAIN):
		return nil, syscall.EAGAIN
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, newError(ErrDaemonUnavailable, nil,
			"no daemon listens on %s; start one by `runed ensure`", d.socket)
	case ctx.Err() != nil:
		return nil, errorOfContext(ctx)
	}
	var cause syscall.Errno
	errors.As(err, &cause)
	return nil, newError(ErrForeignPath, nil, "%s cannot be connected to: %s; set RUNED_HOME to another place", d.socket, cause)
}

// checkListener refuses a listener of another user, before a byte is sent to it. The path proves nothing: its directory may have
// been swapped since it was checked.
func (d *daemon) checkListener(connection net.Conn) error {
	uid, err := peerUser(connection)
	if err != nil {
		return newError(ErrDaemonUnavailable, nil, "the daemon on %s is gone: %v", d.socket, err)
	}
	if own := os.Geteuid(); uid != own {
		return newError(ErrForeignPath, nil, "what listens on %s belongs to user id %d, and you are user id %d, so nothing was sent; "+
			"run this as that user, or set RUNED_HOME to a place of your own", d.socket, uid, own)
	}
	return nil
}

// peerUser returns the user id of the process at the other end of a UNIX socket, as the kernel noted it.
func peerUser(connection net.Conn) (uid int, err error) {
	raw, err := connection.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	failure := raw.Control(func(descriptor uintptr) { uid, err = peerUserOf(int(descriptor)) })
	return uid, errors.Join(failure, err)
}

// ensure makes sure that a daemon listens.
func (d *daemon) ensure(ctx context.Context) error {
	select {
	case d.spawning <- struct{}{}:
		defer func() { <-d.spawning }()
	case <-ctx.Done():
		return errorOfContext(ctx)
	}
	if d.home != "" {
		if err := checkHome(d.home); err != nil {
			return err
		}
	}
	err := d.probe(ctx)
	if !d.maySpawn || (err != nil && !errors.Is(err, ErrDaemonUnavailable)) {
		return err
	}
	if err != nil {
		return d.spawn(ctx)
	}
	if !d.mustMakeRoom(readRecord(d.home)) {
		return nil
	}
	err = d.spawn(ctx)
	if err != nil && d.probe(ctx) == nil {
		return nil // an older daemon is better than none
	}
	return err
}

// probe returns nil if a daemon listens, and otherwise the error that says why it cannot be talked to.
func (d *daemon) probe(ctx context.Context) error {
	connection, err := d.dialOnce(ctx)
	if errors.Is(err, syscall.EAGAIN) {
		return nil // it listens, and has much to do
	}
	if err == nil {
		connection.Close()
	}
	return err
}

// mustMakeRoom tells whether "runed ensure" has something to do although a daemon listens: that daemon is about to end, or is
// older than this client. An older one is told once: the installed "runed" may be as old, and then leaves it.
func (d *daemon) mustMakeRoom(found record) bool {
	if found.Draining {
		return true
	}
	if found == d.asked || found.Version == "" || !isOlder(found.Version, version) {
		return false
	}
	d.asked = found
	return true
}

// record is what daemon.json tells about the daemon of a home.
type record struct {
	PID       int64   `json:"pid"`
	StartTime float64 `json:"start_time"`
	Version   string  `json:"version"`
	Draining  bool    `json:"draining"`
}

// readRecord reads daemon.json. A missing or broken file is an empty record: the file is a hint, and no proof of life.
func readRecord(home string) (found record) {
	data, err := readState(filepath.Join(home, "daemon.json"))
	if err != nil || json.Unmarshal(data, &found) != nil {
		return record{}
	}
	return found
}

// maxStateBytes is the size up to which a file is read. A larger one is no state of runed.
const maxStateBytes = 4 << 20

// readState reads a small file. It never waits: something else in its place, such as a pipe, is an error.
func readState(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxStateBytes {
		return nil, fmt.Errorf("%s is no small file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxStateBytes))
	if err == nil && !utf8.Valid(data) {
		return nil, fmt.Errorf("%s is not UTF-8", path) // encoding/json would replace the wrong bytes
	}
	return data, err
}

// spawn runs "runed ensure --json". That starts the daemon, unless another process does, and waits until it listens.
func (d *daemon) spawn(ctx context.Context) error {
	program, err := findProgram(d.home)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, startPatience+ensureGrace)
	defer cancel()
	command := exec.CommandContext(limited, program, "ensure", "--json")
	command.Env = append(os.Environ(), "RUNED_HOME="+d.home)
	// A kill at once could leave a daemon behind that the command has started and not heard of yet.
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = stopGrace
	output, failure := command.Output()
	if ctx.Err() != nil {
		return errorOfContext(ctx)
	}
	var answer struct {
		Socket string
		Error  *struct {
			Reason  Reason
			Message string
		}
	}
	switch err := json.Unmarshal(output, &answer); {
	case err == nil && answer.Error != nil && answer.Error.Reason != "":
		return newError(answer.Error.Reason, nil, "%s", answer.Error.Message)
	case failure != nil:
		return newError(ErrDaemonStartFailed, nil, "`%s ensure --json` failed: %s", program, describe(failure))
	case err != nil || answer.Socket == "":
		return newError(ErrDaemonStartFailed, nil,
			"`%s ensure --json` did not answer where the daemon is; is it another program's?", program)
	case answer.Socket != d.socket:
		return newError(ErrDaemonStartFailed, nil,
			"`%s ensure --json` serves %s instead of %s; use a version of it that fits this client", program, answer.Socket, d.socket)
	}
	return nil
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
