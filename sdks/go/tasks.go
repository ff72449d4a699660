package openruntime

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"time"
)

const (
	// longestWait of one request of a longer wait. Proxies close connections that are silent for longer.
	longestWait = 20 * time.Second
	// largestBatch of the server.
	largestBatch = 5000
	// cleanUp is the time to find and cancel the task of an aborted call.
	cleanUp = 10 * time.Second
)

// Terminal returns whether a task in this state has ended.
func (s TaskState) Terminal() bool { return s != TaskStatePending && s != TaskStateRunning }

type submission struct {
	key     string
	durable bool
}

// SubmitOption is an option of a submission.
type SubmitOption func(*submission)

// IdempotencyKey sets the key by which the server recognizes a repeated submission. Default: a random one.
func IdempotencyKey(key string) SubmitOption { return func(s *submission) { s.key = key } }

// NotDurable makes a batch faster. Its tasks are interrupted if the server ends first.
func NotDurable() SubmitOption { return func(s *submission) { s.durable = false } }

func submissionOf(options []SubmitOption) submission {
	found := submission{rand.Text(), true}
	for _, option := range options {
		option(&found)
	}
	return found
}

func (s submission) header(wait time.Duration) http.Header {
	prefer := "respond-async"
	if wait > 0 {
		prefer = fmt.Sprintf("wait=%d", int(wait.Seconds()))
	}
	return http.Header{"Idempotency-Key": {s.key}, "Prefer": {prefer}}
}

func complete(request TaskRequest) TaskRequest {
	request.Origin = Ptr(OriginSDK)
	if request.Parameters == nil {
		request.Parameters = struct{}{}
	}
	return request
}

func (c *Client) post(ctx context.Context, request TaskRequest, s submission, wait time.Duration) (*Task, error) {
	return do[Task](ctx, c, call{method: "POST", path: "/tasks", header: s.header(wait), in: complete(request), wait: wait})
}

// Submit queues a task, which continues without this program.
func (c *Client) Submit(ctx context.Context, request TaskRequest, options ...SubmitOption) (*Handle, error) {
	task, err := c.post(ctx, request, submissionOf(options), 0)
	if err != nil {
		return nil, err
	}
	return &Handle{ID: task.TaskID, client: c, record: task}, nil
}

// Run runs a task and returns its record. The error is a *TaskError if it does not complete. When ctx ends, the task is cancelled.
func (c *Client) Run(ctx context.Context, request TaskRequest, options ...SubmitOption) (*Task, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s := submissionOf(options)
	task, err := c.post(ctx, request, s, longestWait)
	if err == nil {
		handle := &Handle{ID: task.TaskID, client: c, record: task}
		if task, err = handle.Completed(ctx); err == nil {
			return task, nil
		}
		defer handle.cancelIfEnded(ctx)
		return task, err
	}
	if ctx.Err() != nil {
		// The server may have queued the task although its response was not read: the same key finds it.
		after, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer stop()
		if task, failed := c.post(after, request, s, 0); failed == nil {
			_, _ = c.Handle(task.TaskID).Cancel(after)
		}
	}
	return nil, err
}

// Outcome of one task of a batch: its handle, or an *APIError.
type Outcome struct {
	Handle *Handle
	Err    error
}

// SubmitMany queues many tasks, in parts that the server accepts. It returns one outcome for each, in the same order.
func (c *Client) SubmitMany(ctx context.Context, requests []TaskRequest, options ...SubmitOption) ([]Outcome, error) {
	found := make([]Outcome, 0, len(requests))
	s := submissionOf(options)
	key := s.key
	for part := range slices.Chunk(requests, largestBatch) {
		if len(found) > 0 {
			s.key = fmt.Sprintf("%s-%d", key, len(found))
		}
		tasks := make([]TaskRequest, len(part))
		for i, request := range part {
			tasks[i] = complete(request)
		}
		body := map[string]any{"tasks": tasks, "durable": s.durable}
		answer, err := do[BatchAnswer](ctx, c, call{method: "POST", path: "/tasks/batch", header: http.Header{"Idempotency-Key": {s.key}}, in: body, wait: time.Minute})
		if err != nil {
			return found, err
		}
		for _, item := range answer.Tasks {
			if item.Task != nil {
				found = append(found, Outcome{Handle: &Handle{ID: item.Task.TaskID, client: c, record: item.Task}})
			} else {
				found = append(found, Outcome{Err: batchError(item.Error)})
			}
		}
	}
	return found, nil
}

func batchError(problem *BatchProblem) *APIError {
	found := &APIError{Status: int(problem.Code), Code: string(problem.ErrorCode), Message: problem.Message, Details: problem.Details}
	if problem.RetryAfter != nil {
		found.RetryAfter = time.Duration(*problem.RetryAfter) * time.Second
	}
	return found
}

// Results yields the result of each task when it has ended: its record, or an error for an unknown task.
func (c *Client) Results(ctx context.Context, ids []string) iter.Seq2[*ResultItem, error] {
	return func(yield func(*ResultItem, error) bool) {
		left := slices.Clone(ids)
		again := c.reconnection()
		for len(left) > 0 {
			body := map[string]any{"tasks": left[:min(len(left), largestBatch)], "at_least": 1, "wait": longestWait.Seconds()}
			answer, err := do[ResultsAnswer](ctx, c, call{method: "POST", path: "/tasks/batch/results", in: body, wait: longestWait})
			if err != nil {
				if err = again.pause(ctx, err); err != nil {
					yield(nil, err)
					return
				}
				continue
			}
			again.progress()
			ended := make(map[string]bool, len(answer.Results))
			for i := range answer.Results {
				ended[answer.Results[i].TaskID] = true
			}
			left = slices.DeleteFunc(left, func(id string) bool { return ended[id] })
			for i := range answer.Results {
				if !yield(&answer.Results[i], nil) {
					return
				}
			}
		}
	}
}

// SubmitForOutput queues a task and returns its first output and its record, after at most wait. Continue with the Output of its Handle.
func (c *Client) SubmitForOutput(ctx context.Context, request TaskRequest, wait time.Duration, options ...SubmitOption) (*TaskOutput, error) {
	header := http.Header{"Idempotency-Key": {submissionOf(options).key}}
	query := values("wait", wait.Seconds())
	return do[TaskOutput](ctx, c, call{method: "POST", path: "/tasks/output", query: query, header: header, in: complete(request), wait: wait})
}

// GetTask returns the record of a task with its parameters.
func (c *Client) GetTask(ctx context.Context, id string) (*Task, error) {
	return get[Task](ctx, c, taskPath(id), nil)
}

// TaskFilter selects tasks. Zero values select all.
type TaskFilter struct {
	State                      []TaskState
	Operation, Owner, Notebook string
	// Name is a text that the task's name contains.
	Name string
	// Limit is the page size. Default: 100.
	Limit int
	// Before is the id of a task: only older tasks.
	Before string
	Offset int
	// Order of pages: TaskOrderNext lists pending tasks in the order in which they will run.
	Order TaskOrder
}

func (f TaskFilter) values() url.Values {
	states := make([]string, len(f.State))
	for i, state := range f.State {
		states[i] = string(state)
	}
	return values("state", states, "operation", f.Operation, "owner", f.Owner, "notebook", f.Notebook, "name", f.Name,
		"limit", f.Limit, "before", f.Before, "offset", f.Offset, "order", string(f.Order))
}

// Tasks yields all tasks, newest first, over all pages.
func (c *Client) Tasks(ctx context.Context, filter TaskFilter) iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		for {
			page, err := c.TaskPage(ctx, filter)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Tasks {
				if !yield(&page.Tasks[i], nil) {
					return
				}
			}
			if page.NextBefore == "" {
				return
			}
			filter.Before = page.NextBefore
		}
	}
}

// TaskPage returns one page of tasks.
func (c *Client) TaskPage(ctx context.Context, filter TaskFilter) (*TaskPage, error) {
	return get[TaskPage](ctx, c, "/tasks", filter.values())
}

// EnhancedTaskPage returns one page of tasks in the format of the OpenRuntime reference. Of the filter, it uses Limit, Offset and Before.
func (c *Client) EnhancedTaskPage(ctx context.Context, filter TaskFilter) (*TaskPage, error) {
	return get[TaskPage](ctx, c, "/tasks/enhanced", values("limit", filter.Limit, "offset", filter.Offset, "before", filter.Before))
}

func taskPath(id string) string { return "/tasks/" + url.PathEscape(id) }

// Handle of a submitted task. It is not safe for concurrent use.
type Handle struct {
	ID     string
	client *Client
	record *Task
}

// Handle returns the handle of a task by its id, without a request.
func (c *Client) Handle(id string) *Handle { return &Handle{ID: id, client: c} }

// Record returns the newest record that was received, nil before the first.
func (h *Handle) Record() *Task { return h.record }

// Refresh requests the present record, without parameters.
func (h *Handle) Refresh(ctx context.Context) (*Task, error) { return h.refresh(ctx, 0) }

func (h *Handle) refresh(ctx context.Context, wait time.Duration) (*Task, error) {
	query := values("wait", wait.Seconds())
	query.Set("parameters", "false")
	return h.keep(do[Task](ctx, h.client, call{method: "GET", path: taskPath(h.ID), query: query, wait: wait}))
}

func (h *Handle) keep(task *Task, err error) (*Task, error) {
	if task != nil {
		h.record = task
	}
	return task, err
}

// Wait waits for the end of the task and returns its record. When ctx ends, only the wait ends.
func (h *Handle) Wait(ctx context.Context) (*Task, error) {
	again := h.client.reconnection()
	for h.record == nil || !h.record.Status.Terminal() {
		wait := longestWait
		if h.record == nil {
			wait = 0
		}
		if _, err := h.refresh(ctx, wait); err != nil {
			if err := again.pause(ctx, err); err != nil {
				return h.record, err
			}
			continue
		}
		again.progress()
	}
	return h.record, nil
}

// Completed waits for the end of the task. The error is a *TaskError unless it completed.
func (h *Handle) Completed(ctx context.Context) (*Task, error) {
	task, err := h.Wait(ctx)
	if err == nil && task.Status != TaskStateCompleted {
		err = &TaskError{task}
	}
	return task, err
}

// Cancel cancels the task and returns its record after its end, nil without the permission to read it.
func (h *Handle) Cancel(ctx context.Context) (*Task, error) {
	return h.keep(do[Task](ctx, h.client, call{method: "DELETE", path: taskPath(h.ID)}))
}

// cancelIfEnded cancels the task if ctx has ended.
func (h *Handle) cancelIfEnded(ctx context.Context) {
	if ctx.Err() != nil {
		after, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer stop()
		_, _ = h.Cancel(after)
	}
}

// Purge deletes the ended task with its output and result.
func (h *Handle) Purge(ctx context.Context) (*Task, error) {
	return do[Task](ctx, h.client, call{method: "DELETE", path: taskPath(h.ID), query: values("purge", true), once: true})
}

// SetPriority changes the priority of the pending task, 1 to 10.
func (h *Handle) SetPriority(ctx context.Context, priority int) (*Task, error) {
	return h.keep(do[Task](ctx, h.client, call{method: "PATCH", path: taskPath(h.ID), in: map[string]int{"priority": priority}}))
}

// Output yields what the task prints and displays, until its end. since is 0 or the Next of an earlier response.
func (h *Handle) Output(ctx context.Context, since int64) iter.Seq2[*OutputItem, error] {
	return func(yield func(*OutputItem, error) bool) {
		again := h.client.reconnection()
		for {
			query := values("since", since, "wait", longestWait.Seconds())
			found, err := do[TaskOutput](ctx, h.client, call{method: "GET", path: taskPath(h.ID) + "/output", query: query, wait: longestWait})
			if err != nil {
				if err := again.pause(ctx, err); err != nil {
					yield(nil, err)
					return
				}
				continue
			}
			again.progress()
			for i := range found.Items {
				if !yield(&found.Items[i], nil) {
					return
				}
			}
			if found.Finished {
				return
			}
			since = found.Next
		}
	}
}

// Payload returns the opaque result of a python or call task, such as a cloudpickle, and its encoding.
func (h *Handle) Payload(ctx context.Context) (data []byte, encoding string, err error) {
	header := http.Header{"Accept": {"*/*"}}
	response, data, err := h.client.send(ctx, call{method: "GET", path: taskPath(h.ID) + "/payload", header: header, wait: transfer}, false)
	if err != nil {
		return nil, "", err
	}
	return data, response.Header.Get("X-OpenRuntime-Encoding"), nil
}

// Output decodes the output of a completed task, for example into a map or a struct.
func Output[T any](task *Task) (T, error) {
	var found T
	if task.Result == nil {
		return found, &TaskError{task}
	}
	return found, json.Unmarshal(task.Result.Output, &found)
}
