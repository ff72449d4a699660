package openruntime

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// call is a request.
type call struct {
	method, path string
	query        url.Values
	header       http.Header
	// in is the body as JSON; body is one of another type.
	in   any
	body []byte
	// wait is the time that the response may take in addition to the time limit.
	wait time.Duration
	// once marks a request that has another effect if it is repeated. It is not repeated after a lost connection.
	once bool
}

var errTooLate = errors.New("no response in time")

// do sends a request and returns the JSON of the response; nil for one without content.
func do[T any](ctx context.Context, c *Client, what call) (*T, error) {
	_, body, err := c.send(ctx, what, false)
	if err != nil || len(body) == 0 {
		return nil, err
	}
	found := new(T)
	if err := json.Unmarshal(body, found); err != nil {
		return nil, fmt.Errorf("%s is not an OpenRuntime server: %w", c.baseURL, err)
	}
	return found, nil
}

// send makes a request, and repeats it where that can help. The content is read unless the response is a stream, which the caller closes.
func (c *Client) send(ctx context.Context, what call, stream bool) (*http.Response, []byte, error) {
	if what.in != nil {
		encoded, err := json.Marshal(what.in)
		if err != nil {
			return nil, nil, err
		}
		what.body = encoded
	}
	for tries := 0; ; tries++ {
		response, body, err := c.once(ctx, what, stream)
		if err == nil {
			return response, body, nil
		}
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		delay, again := c.retryDelay(err, tries, what.once)
		if !again || tries >= c.options.MaxRetries {
			return nil, nil, err
		}
		if err := sleep(ctx, delay); err != nil {
			return nil, nil, err
		}
	}
}

// retryDelay returns the time before a retry, and false if a retry is hopeless, unsafe or too late.
func (c *Client) retryDelay(err error, tries int, once bool) (time.Duration, bool) {
	var lost *ConnectionError
	if errors.As(err, &lost) {
		return backoff(tries), !once
	}
	var refused *APIError
	if !errors.As(err, &refused) {
		return 0, false
	}
	if refused.RetryAfter > 0 {
		return refused.RetryAfter, refused.RetryAfter <= c.options.MaxRetryDelay
	}
	switch refused.Status {
	case 429, 502, 503, 504:
		return backoff(tries), refused.Code == ""
	}
	return 0, false
}

func (c *Client) once(ctx context.Context, what call, stream bool) (*http.Response, []byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.options.Timeout+what.wait, func() { cancel(errTooLate) })
	ended := func() { timer.Stop(); cancel(nil) }
	request, err := http.NewRequestWithContext(ctx, what.method, c.url(what.path, what.query), bytes.NewReader(what.body))
	if err == nil {
		request.Header = what.header.Clone()
		if request.Header == nil {
			request.Header = http.Header{}
		}
		request.Header.Set("Accept", cmp.Or(request.Header.Get("Accept"), "application/json"))
		if what.in != nil {
			request.Header.Set("Content-Type", "application/json")
		}
		err = c.authorize(ctx, request.Header)
	}
	if err != nil {
		ended()
		return nil, nil, err
	}
	lost := func(err error) error { return &ConnectionError{c.baseURL, cmp.Or(context.Cause(ctx), err)} }
	response, err := c.options.HTTPClient.Do(request)
	if err != nil {
		err = lost(err)
		ended()
		return nil, nil, err
	}
	if version := response.Header.Get("OpenRuntime-Version"); version != "" {
		c.version.Store(&version)
	}
	if stream && response.StatusCode < 300 {
		timer.Stop()
		response.Body = &streamBody{response.Body, ended}
		return response, nil, nil
	}
	defer ended()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, nil, lost(err)
	}
	if response.StatusCode >= 300 {
		return nil, nil, responseError(response, body)
	}
	return response, body, nil
}

// streamBody releases the context of its request when it is closed.
type streamBody struct {
	io.ReadCloser
	ended func()
}

func (b *streamBody) Close() error {
	defer b.ended()
	return b.ReadCloser.Close()
}

func (c *Client) url(path string, query url.Values) string {
	if len(query) == 0 {
		return c.baseURL + path
	}
	return c.baseURL + path + "?" + query.Encode()
}

func (c *Client) authorize(ctx context.Context, header http.Header) error {
	token := c.options.Token
	if c.options.TokenSource != nil {
		found, err := c.options.TokenSource(ctx)
		if err != nil {
			return err
		}
		token = found
	}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	return nil
}

// values returns the query of names and values in turn, without zero values.
func values(pairs ...any) url.Values {
	found := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		switch value := pairs[i+1].(type) {
		case []string:
			found[pairs[i].(string)] = value
		case string, int, int64, float64, bool:
			if text := fmt.Sprint(value); text != "" && text != "0" && text != "false" {
				found.Set(pairs[i].(string), text)
			}
		}
	}
	return found
}

// reconnection pauses between attempts to reconnect, which end after a time without progress.
type reconnection struct {
	limit        time.Duration
	tries        int
	offlineSince time.Time
}

func (r *reconnection) progress() { r.tries = 0 }

// pause waits before the next attempt. It returns err if that is not a lost connection or the time is over, or the cause of an ended context.
func (r *reconnection) pause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var lost *ConnectionError
	if !errors.As(err, &lost) {
		return err
	}
	if r.tries == 0 {
		r.offlineSince = time.Now()
	}
	if time.Since(r.offlineSince) > r.limit {
		return err
	}
	r.tries++
	return sleep(ctx, backoff(r.tries-1))
}

// backoff returns the time before a retry, with jitter.
func backoff(tries int) time.Duration {
	base := 8 * time.Second
	if tries < 4 {
		base = 500 * time.Millisecond << tries
	}
	return base*3/4 + rand.N(base/4)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func trimmed(baseURL string) string {
	return strings.TrimRight(cmp.Or(baseURL, "http://localhost:8000"), "/")
}
