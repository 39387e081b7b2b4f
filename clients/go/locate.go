package runed

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"
)

// locate returns the daemon's home and socket. The home is empty if others look after the daemon.
func locate(c *config) (home, socket string, err error) {
	if c.socket != "" {
		if c.home != "" {
			return "", "", newError(ErrBadSetting, nil, "give WithHome or WithSocket, not both")
		}
		socket, err = absolute(c.socket)
		return "", shortSocketPath(socket), err
	}
	home = c.home
	if home == "" {
		home = os.Getenv("RUNED_HOME")
	}
	if home == "" {
		home = "~/.runed"
	}
	if home, err = absolute(home); err != nil {
		return "", "", err
	}
	if !utf8.ValidString(home) {
		return "", "", newError(ErrBadSetting, nil, "the home %q is not UTF-8; accepted is a path in UTF-8", home)
	}
	return home, shortSocketPath(filepath.Join(home, "embedding.sock")), nil
}

// absolute expands a leading ~ and returns the absolute path, as the daemon does.
func absolute(path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~"); ok {
		name, below, _ := strings.Cut(rest, "/")
		directory, err := homeOf(name)
		if err != nil {
			return "", newError(ErrBadSetting, nil,
				"%s: no home directory is known for ~%s; set HOME, or RUNED_HOME to a full path", path, name)
		}
		path = filepath.Join(directory, below)
	}
	result, err := filepath.Abs(path)
	if err != nil {
		return "", newError(ErrBadSetting, nil, "%s: the working directory is gone; give a full path", path)
	}
	return result, nil
}

// homeOf returns the home directory of a user; of this one if the name is empty.
func homeOf(name string) (string, error) {
	if directory := os.Getenv("HOME"); name == "" && directory != "" {
		return directory, nil
	}
	find := user.Current
	if name != "" {
		find = func() (*user.User, error) { return user.Lookup(name) }
	}
	found, err := find()
	if err != nil {
		return "", err
	}
	return found.HomeDir, nil
}

// shortSocketPath returns the path itself or, if it is too long, the alias that daemon and clients agree on.
func shortSocketPath(path string) string {
	if len(path) <= maxSocketPath {
		return path
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(aliasDir(), fmt.Sprintf("runed-%s.sock", hex.EncodeToString(sum[:])[:32]))
}

func aliasDir() string { return fmt.Sprintf("/tmp/runed-%d", os.Getuid()) }

// checkSocketDir refuses an alias directory that another user laid out in the world-writable /tmp, such as a link to elsewhere.
// Its owner could listen there in the daemon's place and read every text. A missing directory is fine: nobody listens.
func checkSocketDir(socket string) error {
	directory := filepath.Dir(socket)
	if directory != aliasDir() {
		return nil
	}
	info, err := os.Lstat(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.IsDir() && info.Mode().Perm()&0o077 == 0 {
		if status, ok := info.Sys().(*syscall.Stat_t); ok && int(status.Uid) == os.Getuid() {
			return nil
		}
	}
	return newError(ErrForeignPath, nil, "%s is not a directory of yours with mode 0700, so a socket in it cannot be trusted; "+
		"remove it, or set RUNED_HOME to a shorter path", directory)
}

// findProgram finds the "runed" to start: the runed_binary of config.json, else the one on the PATH, else the one in the home.
func findProgram(home string) (string, error) {
	if configured := configuredProgram(home); configured != "" {
		return absolute(configured)
	}
	if found, err := exec.LookPath("runed"); err == nil {
		return found, nil
	}
	installed := filepath.Join(home, "bin", "runed")
	if _, err := exec.LookPath(installed); err == nil {
		return installed, nil
	}
	return "", newError(ErrDaemonStartFailed, nil, "there is no `runed` program to start the daemon with; "+
		"run `pip install runed`, or name one as runed_binary in %s", filepath.Join(home, "config.json"))
}

// configuredProgram returns the runed_binary of config.json. It ignores a file that cannot be read, or that another user can change:
// the "runed" that is found otherwise says what is wrong with that file.
func configuredProgram(home string) string {
	path := os.Getenv("RUNED_CONFIG")
	if path == "" {
		path = filepath.Join(home, "config.json")
	}
	path, err := absolute(path)
	if err != nil || !mayRead(path) {
		return ""
	}
	data, err := readState(path)
	if err != nil {
		return ""
	}
	var document struct {
		RunedBinary string `json:"runed_binary"`
	}
	if json.Unmarshal(data, &document) != nil {
		return ""
	}
	return document.RunedBinary
}
