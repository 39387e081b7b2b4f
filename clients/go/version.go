package runed

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// version is the release that this client belongs to, the same as that of the daemon and of the other clients.
const version = "0.1.0"

// isOlder tells whether a version is older than another. The numbers count. A pre-release counts as its release, so that two
// pre-releases never replace each other for ever.
func isOlder(version, than string) bool { return slices.Compare(release(version), release(than)) < 0 }

var leadingNumbers = regexp.MustCompile(`^\d+(\.\d+)*`)

// release returns the numbers of a version; none if it does not begin with one.
func release(version string) []int {
	var result []int
	for number := range strings.SplitSeq(leadingNumbers.FindString(version), ".") {
		if value, err := strconv.Atoi(number); err == nil {
			result = append(result, value)
		}
	}
	return result
}
