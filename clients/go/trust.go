package runed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// maxLinks is the largest number of links that a path may lead through, as in the kernel.
const maxLinks = 40

// homeFiles are the files of a home that a client reads, runs or connects to, and the directories that hold them.
var homeFiles = []string{"bin", "cache", "cache.secret", "config.json", "config.lock", "daemon.json", "daemon.lock", "embedding.sock", "http.token",
	"install.lock", "installed.json", "licenses", "logs", "models", "run", "spawn.lock"}

// checkHome refuses a home in which another user has a hand, before anything of it is read, run or connected to. A missing home is
// fine, and so is a link of this user or of root to a home.
func checkHome(home string) error {
	real, err := resolveTrusted(home)
	if err != nil {
		return err
	}
	info, err := os.Stat(real)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return newError(ErrForeignPath, nil, "%s cannot be read: %v; set RUNED_HOME to a place of your own", home, err)
	case !info.IsDir():
		return newError(ErrForeignPath, nil, "%s is not a directory; move it away or set RUNED_HOME to another place", home)
	case ownerOf(info) != os.Geteuid():
		return newError(ErrForeignPath, nil, "%s belongs to user id %d, and you are user id %d; "+
			"set RUNED_HOME to a place of your own", home, ownerOf(info), os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		narrow := ""
		if info.Mode()&fs.ModeSticky == 0 { // other users need a sticky directory, such as /tmp
			narrow = fmt.Sprintf(", or check what is in it and run `chmod 700 %s`", home)
		}
		return newError(ErrForeignPath, nil, "others can write to %s (mode %04o), so nothing of it is used; "+
			"set RUNED_HOME to a directory of its own%s", home, modeOf(info), narrow)
	}
	for _, name := range homeFiles {
		if info, err := os.Lstat(filepath.Join(real, name)); err == nil && !isTrusted(ownerOf(info)) {
			return newError(ErrForeignPath, nil, "%s belongs to user id %d, so it is not used; remove it, or set RUNED_HOME to a place "+
				"of your own", filepath.Join(home, name), ownerOf(info))
		}
	}
	return nil
}

// resolveTrusted returns a path without links. It refuses one that another user can change on the way: each directory above the end
// of the path must belong to this user or root, and others may write to it only if it is sticky, like /tmp.
func resolveTrusted(path string) (string, error) {
	place, pending, links := "/", parts(path), 0
	for len(pending) > 0 {
		if err := checkParent(path, place); err != nil {
			return "", err
		}
		name := pending[0]
		pending = pending[1:]
		next := filepath.Join(place, name) // of "..", too: place has no links
		info, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return filepath.Join(append([]string{next}, pending...)...), nil
		}
		if err != nil {
			return "", newError(ErrForeignPath, nil, "%s cannot be read: %v; set RUNED_HOME to a place of your own", path, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			place = next
			continue
		}
		target, err := os.Readlink(next)
		if links++; err != nil || links > maxLinks || !isTrusted(ownerOf(info)) {
			return "", newError(ErrForeignPath, nil, "%s is a link of user id %d, or one of too many links, on the way to %s; "+
				"set RUNED_HOME to a place of your own", next, ownerOf(info), path)
		}
		if filepath.IsAbs(target) {
			place = "/"
		}
		pending = append(parts(target), pending...)
	}
	return place, nil
}

// parts returns the names of which a path consists.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// parentRemedy says what to do about a directory above a home.
const parentRemedy = "set RUNED_HOME to a place of your own, or set RUNED_TRUST_PARENTS=1 if you trust them"

func checkParent(path, parent string) error {
	if slices.Contains([]string{"1", "true", "yes", "on"}, strings.ToLower(os.Getenv("RUNED_TRUST_PARENTS"))) {
		return nil
	}
	info, err := os.Lstat(parent)
	switch {
	case err != nil || !info.IsDir():
		return nil // the look at what is below it tells why
	case !isTrusted(ownerOf(info)):
		return newError(ErrForeignPath, nil, "%s belongs to user id %d, who could replace %s; %s", parent, ownerOf(info), path,
			parentRemedy)
	case isOpenToWriters(info) && info.Mode()&fs.ModeSticky == 0:
		return newError(ErrForeignPath, nil, "others can write to %s (mode %04o), and could replace %s; run `chmod go-w %s`, %s",
			parent, modeOf(info), path, parent, parentRemedy)
	}
	return nil
}

// mayRead tells whether no other user can change a file. It follows links.
func mayRead(path string) bool {
	_, err := resolveTrusted(path)
	info, failure := os.Stat(path)
	return err == nil && failure == nil && isTrusted(ownerOf(info)) && !isOpenToWriters(info)
}

// isTrusted tells whether files of a user can be trusted: those of this user, and those of root.
func isTrusted(uid int) bool {
	if uid == os.Geteuid() || uid == 0 {
		return true
	}
	// In a user namespace without a root, all files of the real root belong to another user, and so does "/".
	root, err := os.Stat("/")
	return err == nil && uid == ownerOf(root)
}

// isOpenToWriters tells whether others than the owner and this user's own groups can write to a file or directory.
func isOpenToWriters(info fs.FileInfo) bool {
	status, ok := info.Sys().(*syscall.Stat_t)
	byGroup := info.Mode().Perm()&0o020 != 0 && !(ok && isOwnGroup(int(status.Gid)))
	return byGroup || info.Mode().Perm()&0o002 != 0
}

// isOwnGroup tells whether a group is that of this process, or that of this user's login, which newgrp does not change.
func isOwnGroup(gid int) bool {
	if gid == os.Getegid() {
		return true
	}
	login, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	return err == nil && login.Gid == strconv.Itoa(gid)
}

// modeOf returns the permissions with the bits of set-user-id, set-group-id and stickiness.
func modeOf(info fs.FileInfo) uint32 {
	if status, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint32(status.Mode) & 0o7777
	}
	return uint32(info.Mode().Perm())
}

func ownerOf(info fs.FileInfo) int {
	if status, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(status.Uid)
	}
	return -1
}
