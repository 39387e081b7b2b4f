package runed

import "golang.org/x/sys/unix"

// peerUserOf returns the effective user id of the process at the other end: of the listener when it began to listen.
func peerUserOf(descriptor int) (uid int, err error) {
	credentials, err := unix.GetsockoptUcred(descriptor, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(credentials.Uid), nil
}
