package runed

import "time"

// The values that the clients of all languages share. tests/conformance/policy.json has them too, and a test compares.
const (
	// retryPatience is how long a call without a deadline is tried again, counted from the first refusal.
	retryPatience = time.Minute
	// retryGrowth is the factor by which each pause is longer than the one before, on average.
	retryGrowth = 1.5
	// retryShortest and retryLongest limit a pause before the jitter. A longer time that the daemon tells is kept.
	retryShortest = 50 * time.Millisecond
	retryLongest  = 10 * time.Second

	// lostTries is how often a call is sent again whose connection broke. One try is not enough: a dying daemon closes its
	// connections a moment before its listening socket, so that it seems to live on.
	lostTries = 3
	// lostPause is the time between a broken connection and the next try.
	lostPause = 50 * time.Millisecond

	// drainPoll is the time between two looks for the successor of a daemon that shuts down.
	drainPoll = 200 * time.Millisecond
	// drainPatience is how much these pauses add up to at most.
	drainPatience = 30 * time.Second

	// bootstrapFirstPoll and bootstrapLongestPoll are the times between two looks at Health during a bootstrap, at first and later.
	bootstrapFirstPoll   = 100 * time.Millisecond
	bootstrapLongestPoll = 250 * time.Millisecond

	// dialPause is the time between two tries to connect to a daemon whose queue of connections is full.
	dialPause = 20 * time.Millisecond
	// dialPatience is how long to try so where the caller sets no limit.
	dialPatience = time.Minute

	// connections is how many single calls go on at a time, each over a connection of its own. Further calls wait for one.
	connections = 64

	// startPatience is how long the start of a daemon may take where the caller sets no limit.
	startPatience = time.Minute

	// maxSocketPath is the longest path of a socket in bytes: macOS holds 104 with the closing NUL, Linux 108.
	maxSocketPath = 103

	// streamTexts and streamBytes limit the texts that a stream has taken from its caller and that are not answered yet. They are
	// large enough for the daemon to put texts of like length together, and small enough to be computed again if a daemon dies.
	streamTexts = 512
	streamBytes = 4 << 20

	// messageTexts and messageBytes limit one message of a stream. A longer text goes alone.
	messageTexts = 64
	messageBytes = 64 << 10

	// itemOverhead is the number of bytes at most that a text takes of a stream's message besides itself: tags, lengths, its number.
	itemOverhead = 40
	// textOverhead is the number of bytes at most that a text takes of a batch besides itself: the tag and the length.
	textOverhead = 6

	// largeText is the length in bytes above which a single text is compared with the daemon's limit before it is sent.
	largeText = 1 << 20

	// fallbackTexts and fallbackBytes are the limits of a request where the daemon tells none.
	fallbackTexts = 32
	fallbackBytes = 4 << 20

	// centroidBytes is about the number of bytes of centroids in one message.
	centroidBytes = 1 << 20
)
