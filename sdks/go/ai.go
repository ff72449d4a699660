package openruntime

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// longestSilence of a stream or a WebSocket. The server sends something every 5 to 10 seconds.
const longestSilence = 30 * time.Second

// Prompt is a submitted prompt.
type Prompt struct{ Handle }

// Ask queues a prompt. The default workflow is model_inference, which sends the prompt unchanged.
func (c *Client) Ask(ctx context.Context, request AIRequest, options ...SubmitOption) (*Prompt, error) {
	request.WorkflowType = cmp.Or(request.WorkflowType, "model_inference")
	request.Origin = Ptr(OriginSDK)
	what := call{method: "POST", path: "/ai/tasks", header: submissionOf(options).header(0), in: request, wait: time.Minute}
	asked, err := do[AITask](ctx, c, what)
	if ctx.Err() != nil {
		// The server may have queued the prompt although its response was not read: the same key finds it.
		after, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer stop()
		if asked, failed := do[AITask](after, c, what); failed == nil {
			_, _ = c.Handle(asked.TaskID).Cancel(after)
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return c.Prompt(asked.TaskID), nil
}

// Prompt returns the handle of a prompt by the id of its task, without a request.
func (c *Client) Prompt(id string) *Prompt { return &Prompt{Handle{ID: id, client: c}} }

// Text yields the text while the model generates it. The error is a *TaskError if the task does not complete. When ctx ends, the task is
// cancelled. Leaving the loop does not cancel it.
func (p *Prompt) Text(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for piece, err := range p.Pieces(ctx, 0) {
			if !yield(piece.Text, err) || err != nil {
				return
			}
		}
		if _, err := p.Answer(ctx); err != nil {
			yield("", err)
		}
	}
}

// Answer waits for the response. The error is a *TaskError if the task does not complete. When ctx ends, the task is cancelled.
func (p *Prompt) Answer(ctx context.Context) (*Answer, error) {
	task, err := p.Completed(ctx)
	if err != nil {
		p.cancelIfEnded(ctx)
		return nil, err
	}
	answer, err := Output[Answer](task)
	return &answer, err
}

var errCutOff = errors.New("the stream ended before the task")

// Pieces yields the pieces of the text after the first since characters. A lost connection resumes where it ended. A piece with
// Index 0 after others restarts the text: the worker died, and the task runs again. When ctx ends, the task is cancelled.
func (p *Prompt) Pieces(ctx context.Context, since int64) iter.Seq2[TokenEvent, error] {
	return func(yield func(TokenEvent, error) bool) {
		again := p.client.reconnection()
		for {
			left, err := p.stream(ctx, &since, again, yield)
			if left {
				return
			}
			if err := again.pause(ctx, err); err != nil {
				p.cancelIfEnded(ctx)
				yield(TokenEvent{}, err)
				return
			}
		}
	}
}

// stream reads one connection. It returns true at the end of the text and if the caller leaves the loop.
func (p *Prompt) stream(ctx context.Context, since *int64, again *reconnection, yield func(TokenEvent, error) bool) (bool, error) {
	header := http.Header{"Accept": {"text/event-stream"}}
	response, _, err := p.client.send(ctx, call{method: "GET", path: taskPath(p.ID) + "/tokens", query: values("since", *since), header: header}, true)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	silence := time.AfterFunc(longestSilence, func() { _ = response.Body.Close() })
	defer silence.Stop()
	for event, data := range serverSentEvents(response.Body, func() { silence.Reset(longestSilence) }) {
		again.progress()
		if event == "task" {
			return true, nil
		}
		if event != "token" {
			continue
		}
		var piece TokenEvent
		if err := json.Unmarshal(data, &piece); err != nil {
			return false, err
		}
		*since = piece.Index + int64(utf8.RuneCountInString(piece.Text))
		if !yield(piece, nil) {
			return true, nil
		}
	}
	return false, &ConnectionError{p.client.baseURL, errCutOff}
}

// serverSentEvents yields events and their data, and calls heard for each line.
func serverSentEvents(from io.Reader, heard func()) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		lines := bufio.NewScanner(from)
		lines.Buffer(nil, 64<<20)
		event, data := "message", []string(nil)
		for lines.Scan() {
			heard()
			name, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case lines.Text() == "":
				if data != nil && !yield(event, []byte(strings.Join(data, "\n"))) {
					return
				}
				event, data = "message", nil
			case name == "event":
				event = value
			case name == "data":
				data = append(data, value)
			}
		}
	}
}

// Agents returns the agents.
func (c *Client) Agents(ctx context.Context) (*AgentList, error) {
	return get[AgentList](ctx, c, "/ai/agents", nil)
}

// Workflows returns the workflows with the JSON schemas of their parameters.
func (c *Client) Workflows(ctx context.Context) ([]WorkflowInfo, error) {
	found, err := get[WorkflowList](ctx, c, "/ai/workflows", nil)
	if err != nil {
		return nil, err
	}
	return found.Workflows, nil
}

// Insights returns findings from the recorded history.
func (c *Client) Insights(ctx context.Context, request InsightsRequest) (*Insights, error) {
	return do[Insights](ctx, c, call{method: "POST", path: "/ai/insights", in: request, wait: 5 * time.Minute})
}

// Conversations returns the conversations, most recently used first, of all owners or of one.
func (c *Client) Conversations(ctx context.Context, owner string) ([]ConversationInfo, error) {
	found, err := get[ConversationList](ctx, c, "/ai/conversations", values("owner", owner))
	if err != nil {
		return nil, err
	}
	return found.Conversations, nil
}

// Conversation returns a conversation with its messages. An empty owner is the caller.
func (c *Client) Conversation(ctx context.Context, name, owner string) (*Conversation, error) {
	return get[Conversation](ctx, c, "/ai/conversations/"+url.PathEscape(name), values("owner", owner))
}

// DeleteConversation deletes a conversation. Its tasks stay.
func (c *Client) DeleteConversation(ctx context.Context, name, owner string) (*Conversation, error) {
	what := call{method: "DELETE", path: "/ai/conversations/" + url.PathEscape(name), query: values("owner", owner), once: true}
	return do[Conversation](ctx, c, what)
}
