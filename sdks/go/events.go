package openruntime

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/openruntime/sdk-go/internal/ws"
)

// Event is a message of the WebSocket. Its Type is a topic, connected, heartbeat, subscribed or error; the other fields depend on it.
type Event struct {
	ID   int64  `json:"id"`
	Type string `json:"type"`
	// Gap of connected: some missed task updates are no longer stored. Read the tasks again.
	Gap bool `json:"gap"`
	// Data of the topics but metrics; see Decode.
	Data json.RawMessage `json:"data"`
	// Metrics of metrics and heartbeat.
	Metrics *Metrics `json:"metrics"`
	Topics  []Topic  `json:"topics"`
	Error   string   `json:"error"`
}

// Decode decodes the data of an event: TaskNews of task_update, ProgressNews of task_progress, OutputNews of task_output and TokenNews of
// ai_token.
func Decode[T any](event *Event) (T, error) {
	var found T
	return found, json.Unmarshal(event.Data, &found)
}

// EventOptions are options of Events.
type EventOptions struct {
	// Topics to receive, besides task updates.
	Topics []Topic
	// Since is the ID of the last received event: later task updates are sent again. Default: only new ones.
	Since *int64
}

// Events yields live events until ctx ends or the loop is left. After a lost connection, missed task updates follow.
func (c *Client) Events(ctx context.Context, options EventOptions) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		again := c.reconnection()
		for {
			left, err := c.listen(ctx, &options, again, yield)
			if left || ctx.Err() != nil {
				return
			}
			if err := again.pause(ctx, err); err != nil {
				if ctx.Err() == nil {
					yield(nil, err)
				}
				return
			}
		}
	}
}

// listen reads one connection. It returns true if the caller leaves the loop.
func (c *Client) listen(ctx context.Context, options *EventOptions, again *reconnection, yield func(*Event, error) bool) (bool, error) {
	header := http.Header{}
	if err := c.authorize(ctx, header); err != nil {
		return false, err
	}
	query := url.Values{}
	for _, topic := range options.Topics {
		query.Add("topics", string(topic))
	}
	if options.Since != nil {
		query.Set("since", fmt.Sprint(*options.Since))
	}
	dialling, stop := context.WithTimeout(ctx, c.options.Timeout)
	conn, err := ws.Dial(dialling, "ws"+strings.TrimPrefix(c.url("/ws", query), "http"), header, c.tls())
	stop()
	if err != nil {
		return false, c.refused(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		_ = conn.SetReadDeadline(time.Now().Add(longestSilence))
		if ctx.Err() != nil {
			return true, nil
		}
		text, err := conn.ReadMessage()
		if err != nil {
			return false, c.refused(err)
		}
		event := new(Event)
		if err := json.Unmarshal(text, event); err != nil {
			return false, err
		}
		again.progress()
		options.Since = &event.ID
		if !yield(event, nil) {
			return true, nil
		}
	}
}

// tls returns the TLS configuration of the HTTP client, if it has one.
func (c *Client) tls() *tls.Config {
	if transport, ok := c.options.HTTPClient.Transport.(*http.Transport); ok {
		return transport.TLSClientConfig
	}
	return nil
}

// refused returns the error of a failed handshake or a closed connection.
func (c *Client) refused(err error) error {
	var handshake *ws.HandshakeError
	if errors.As(err, &handshake) && handshake.Status < 500 && handshake.Status != 429 {
		return &APIError{Status: handshake.Status, Message: err.Error()}
	}
	var closed *ws.CloseError
	if errors.As(err, &closed) && (closed.Code == 4001 || closed.Code == 4003) {
		return &APIError{Status: closed.Code - 4001 + 401, Code: "not_allowed", Message: closed.Reason}
	}
	return &ConnectionError{c.baseURL, err}
}
