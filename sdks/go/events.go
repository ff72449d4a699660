package openruntime

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/openruntime/sdk-go/internal/ws"
)

// Topics of events.
const (
	TopicTaskUpdate   = "task_update"
	TopicTaskProgress = "task_progress"
	TopicTaskOutput   = "task_output"
	TopicAIToken      = "ai_token"
	TopicMetrics      = "metrics"
)

// Message is an event. Its Type is a topic, connected, heartbeat, subscribed or error; the other fields depend on it.
type Message struct {
	ID   int64  `json:"id"`
	Type string `json:"type"`
	// Gap of connected: some missed task updates are no longer stored. Read the tasks again.
	Gap bool `json:"gap"`
	// Data of task_update, task_progress, task_output and ai_token; see Decode.
	Data json.RawMessage `json:"data"`
	// Metrics of metrics and heartbeat.
	Metrics *Metrics `json:"metrics"`
	Topics  []string `json:"topics"`
	Error   string   `json:"error"`
}

// Decode decodes the data of a message, for example that of task_update into a Task, of which it has some fields.
func Decode[T any](message *Message) (T, error) {
	var found T
	return found, json.Unmarshal(message.Data, &found)
}

// EventOptions are options of Events.
type EventOptions struct {
	// Topics to receive. Default: task_update.
	Topics []string
	// Since is the ID of the last received message: later task updates are sent again. Default: only new ones.
	Since *int64
}

// Events yields live messages until ctx ends or the loop is left. After a lost connection, missed task updates follow.
func (c *Client) Events(ctx context.Context, options EventOptions) iter.Seq2[*Message, error] {
	if options.Topics == nil {
		options.Topics = []string{TopicTaskUpdate}
	}
	return func(yield func(*Message, error) bool) {
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
func (c *Client) listen(ctx context.Context, options *EventOptions, again *reconnection, yield func(*Message, error) bool) (bool, error) {
	header := http.Header{}
	if err := c.authorize(ctx, header); err != nil {
		return false, err
	}
	query := values("topics", strings.Join(options.Topics, ","))
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
		message := new(Message)
		if err := json.Unmarshal(text, message); err != nil {
			return false, err
		}
		again.progress()
		options.Since = &message.ID
		if !yield(message, nil) {
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
