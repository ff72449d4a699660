package openruntime

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"
)

type announcement struct {
	URL   string
	Token string
	PID   int
	at    time.Time
}

func dataDir() string {
	if given := os.Getenv("OPENRUNTIME_DATA_DIR"); given != "" {
		return given
	}
	home, _ := os.UserHomeDir()
	if runtime.GOOS == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "openruntime")
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return filepath.Join(data, "openruntime")
	}
	return filepath.Join(home, ".local", "share", "openruntime")
}

// announcements returns those of this user's stand-alone servers that run, newest first. Only this user can read their files.
func announcements() []announcement {
	var found []announcement
	paths, _ := filepath.Glob(filepath.Join(dataDir(), "standalone", "*.json"))
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			continue
		}
		each := announcement{at: info.ModTime()}
		text, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(text, &each) != nil {
			continue
		}
		if process, err := os.FindProcess(each.PID); err == nil && process.Signal(syscall.Signal(0)) == nil {
			found = append(found, each)
		}
	}
	slices.SortFunc(found, func(one, other announcement) int { return other.at.Compare(one.at) })
	return found
}

var errNoServer = errors.New("no OpenRuntime server of this user responds on this machine: start one with `jupyter openruntime`")

// Connect returns a client of the server that started this program's Jupyter kernel, otherwise of the newest stand-alone server of this user
// that responds. BaseURL and tokens of the options are ignored.
func Connect(ctx context.Context, options Options) (*Client, error) {
	var candidates []Options
	if url, parent := os.Getenv("OPENRUNTIME_URL"), os.Getenv("JPY_PARENT_PID"); url != "" && parent != "" && parent == os.Getenv("OPENRUNTIME_SERVER_PID") {
		options.BaseURL, options.Token, options.TokenSource = url, os.Getenv("OPENRUNTIME_TOKEN"), nil
		candidates = append(candidates, options)
	}
	for _, found := range announcements() {
		options.BaseURL, options.Token = found.URL, ""
		// A server that restarts on the same port has a new token.
		options.TokenSource = func(context.Context) (string, error) {
			for _, each := range announcements() {
				if each.URL == found.URL {
					return each.Token, nil
				}
			}
			return found.Token, nil
		}
		candidates = append(candidates, options)
	}
	for _, each := range candidates {
		quick := each
		quick.MaxRetries, quick.Timeout = -1, 5*time.Second
		if _, err := New(quick).Health(ctx); err == nil {
			return New(each), nil
		} else if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, errNoServer
}
