// Performs the steps of conformance cases with the Go SDK; see ../../runner.py. It holds no expectation.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	openruntime "github.com/openruntime/sdk-go"
)

const longestListening = 30 * time.Second

type result = map[string]any

type options struct {
	Priority *int64
	Timeout  *float64
	Session  *string
}

type step struct {
	Do, As, Task, Of, Operation, Prompt, ID, Name, Dtype, Timeframe string
	Parameters                                                      map[string]any
	Options                                                         options
	Tasks                                                           []struct {
		Operation  string
		Parameters map[string]any
		options
	}
	Filter     struct{ State []openruntime.TaskState }
	Limit      int
	Points     int
	Priority   int
	Shape      []int
	Data       []float64
	Topics     []openruntime.Topic
	Completed  []string
	Types      []string
	Gap        bool
	MetricType string  `json:"metric_type"`
	WaitS      float64 `json:"wait_s"`
	AbortS     float64 `json:"abort_after_s"`
}

type player struct {
	client *openruntime.Client
	mark   string
	ids    map[string]string
	batch  map[string][]string
	*listener
}

func (p *player) id(name string) string {
	if id, ok := p.ids[name]; ok {
		return id
	}
	return name
}

func (p *player) request(operation string, parameters map[string]any, o options) openruntime.TaskRequest {
	return openruntime.TaskRequest{Operation: operation, Parameters: parameters, Priority: o.Priority, Timeout: o.Timeout, Session: o.Session, Name: &p.mark}
}

func summary(task *openruntime.Task, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	found := result{"status": task.Status, "operation": task.Operation, "has_parameters": len(task.Parameters) > 0}
	if task.Result != nil {
		found["output"] = task.Result.Output
	}
	return found, nil
}

func counted[T any](list []T, err error) (any, error) { return result{"count": len(list)}, err }

func text(items []openruntime.OutputItem) string {
	var all strings.Builder
	for _, item := range items {
		all.WriteString(string(item.Text))
	}
	return all.String()
}

func (p *player) play(ctx context.Context, s step) (any, error) {
	c := p.client
	task := func() *openruntime.Handle { return c.Handle(p.id(s.Task)) }
	switch s.Do {
	case "run":
		done, err := c.Run(ctx, p.request(s.Operation, s.Parameters, s.Options))
		if err == nil && s.As != "" {
			p.ids[s.As] = done.TaskID
		}
		return summary(done, err)
	case "submit":
		handle, err := c.Submit(ctx, p.request(s.Operation, s.Parameters, s.Options))
		if err == nil {
			p.ids[s.As] = handle.ID
		}
		return result{"submitted": true}, err
	case "submit_for_output":
		found, err := c.SubmitForOutput(ctx, p.request(s.Operation, s.Parameters, s.Options), time.Duration(s.WaitS*float64(time.Second)))
		if err != nil {
			return nil, err
		}
		return result{"text": text(found.Items), "status": found.Task.Status}, nil
	case "wait":
		return summary(task().Wait(ctx))
	case "completed":
		return summary(task().Completed(ctx))
	case "cancel":
		return summary(task().Cancel(ctx))
	case "purge":
		return summary(task().Purge(ctx))
	case "set_priority":
		return summary(task().SetPriority(ctx, s.Priority))
	case "get":
		return summary(c.GetTask(ctx, p.id(s.Task)))
	case "output":
		var items []openruntime.OutputItem
		for item, err := range task().Output(ctx, 0) {
			if err != nil {
				return nil, err
			}
			items = append(items, *item)
		}
		return result{"text": text(items)}, nil
	case "payload":
		data, encoding, err := task().Payload(ctx)
		return result{"encoding": encoding, "bytes": len(data)}, err
	case "submit_many":
		return p.submitMany(ctx, s)
	case "results":
		statuses := []openruntime.TaskState{}
		for item, err := range c.Results(ctx, p.batch[s.Of]) {
			if err != nil {
				return nil, err
			}
			statuses = append(statuses, item.Task.Status)
		}
		return result{"statuses": statuses}, nil
	case "list":
		count, distinct := 0, map[string]bool{}
		for found, err := range c.Tasks(ctx, openruntime.TaskFilter{Name: p.mark, Limit: s.Limit, State: s.Filter.State}) {
			if err != nil {
				return nil, err
			}
			count++
			distinct[found.TaskID] = true
		}
		return result{"count": count, "distinct": len(distinct)}, nil
	case "page":
		page, err := c.TaskPage(ctx, openruntime.TaskFilter{Name: p.mark, Limit: s.Limit})
		if err != nil {
			return nil, err
		}
		return result{"count": len(page.Tasks), "total_count": page.TotalCount}, nil
	case "enhanced":
		page, err := c.EnhancedTaskPage(ctx, openruntime.TaskFilter{Limit: s.Limit})
		if err != nil {
			return nil, err
		}
		return result{"count": len(page.Tasks)}, nil
	case "ask":
		return p.ask(ctx, s)
	case "answer":
		prompt, err := c.Ask(ctx, openruntime.AIRequest{Prompt: s.Prompt, Parameters: s.Parameters, Name: &p.mark})
		if err != nil {
			return nil, err
		}
		return prompt.Answer(ctx)
	case "agents":
		found, err := c.Agents(ctx)
		if err != nil {
			return nil, err
		}
		return result{"count": len(found.Agents)}, nil
	case "workflows":
		return counted(c.Workflows(ctx))
	case "insights":
		return insights(ctx, c, s)
	case "conversations":
		return counted(c.Conversations(ctx, ""))
	case "conversation":
		return messages(c.Conversation(ctx, s.Name, ""))
	case "delete_conversation":
		return messages(c.DeleteConversation(ctx, s.Name, ""))
	case "models":
		found, err := c.Models(ctx)
		if err != nil {
			return nil, err
		}
		return result{"count": len(found.Models)}, nil
	case "unload":
		return c.UnloadModel(ctx, s.Name)
	case "listen":
		p.listener = &listener{completed: map[string]bool{}, types: map[string]bool{}}
		return result{"connected": true}, p.listener.start(c, s.Topics)
	case "heard":
		return p.heard(s)
	case "array_round_trip":
		return p.roundTrip(ctx, s)
	case "put_array":
		tensor, err := tensorOf(s)
		if err != nil {
			return nil, err
		}
		return c.PutArray(ctx, s.ID, tensor)
	case "get_array":
		found, err := c.GetArray(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		return result{"dtype": found.Dtype}, nil
	case "array_info":
		return c.ArrayInfo(ctx, s.ID)
	case "arrays":
		found, err := c.Arrays(ctx)
		if err != nil {
			return nil, err
		}
		return result{"count": len(found.Arrays)}, nil
	case "reserve_array":
		return p.reserve(ctx, s)
	case "mark_array_ready":
		return c.MarkArrayReady(ctx, p.id(s.ID))
	case "delete_array":
		return c.DeleteArray(ctx, s.ID)
	case "sessions":
		sessions, err := c.Sessions(ctx)
		if err != nil {
			return nil, err
		}
		found := sessions[slices.IndexFunc(sessions, func(each openruntime.Session) bool { return each.Name == s.Name })]
		p.ids[s.As] = found.ID
		return found, nil
	case "restart_session":
		return c.RestartSession(ctx, p.id(s.ID))
	case "end_session":
		return c.EndSession(ctx, p.id(s.ID))
	case "info":
		return c.Info(ctx)
	case "health":
		return c.Health(ctx)
	case "metrics":
		return c.Metrics(ctx)
	case "metrics_history":
		found, err := c.MetricsHistory(ctx, openruntime.HistoryQuery{Timeframe: openruntime.Timeframe(s.Timeframe), Points: s.Points})
		if err != nil {
			return nil, err
		}
		return result{"timeframe": found.Timeframe}, nil
	case "devices":
		return counted(c.Devices(ctx))
	case "hosts":
		return counted(c.Hosts(ctx))
	case "workers":
		return counted(c.Workers(ctx))
	case "operations":
		return counted(c.Operations(ctx))
	case "openapi":
		document, err := c.OpenAPI(ctx)
		if err != nil {
			return nil, err
		}
		var found struct {
			OpenAPI string `json:"openapi"`
		}
		return result{"openapi": &found.OpenAPI}, json.Unmarshal(document, &found)
	case "discover":
		found, err := openruntime.Connect(ctx, openruntime.Options{})
		if err != nil {
			return nil, err
		}
		return found.Health(ctx)
	}
	return nil, fmt.Errorf("unknown step %q", s.Do)
}

func insights(ctx context.Context, c *openruntime.Client, s step) (any, error) {
	var request openruntime.InsightsRequest
	encoded, _ := json.Marshal(result{"metric_type": s.MetricType, "timeframe": s.Timeframe, "wording": "none"})
	if err := json.Unmarshal(encoded, &request); err != nil {
		return nil, err
	}
	return c.Insights(ctx, request)
}

func messages(found *openruntime.Conversation, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return result{"messages": len(found.Messages)}, nil
}

func (p *player) submitMany(ctx context.Context, s step) (any, error) {
	var requests []openruntime.TaskRequest
	for _, each := range s.Tasks {
		requests = append(requests, p.request(each.Operation, each.Parameters, each.options))
	}
	outcomes, err := p.client.SubmitMany(ctx, requests)
	if err != nil {
		return nil, err
	}
	problems := [][]any{}
	for i, outcome := range outcomes {
		if outcome.Err != nil {
			problems = append(problems, []any{i, problem(outcome.Err)["error"]})
		} else {
			p.batch[s.As] = append(p.batch[s.As], outcome.Handle.ID)
		}
	}
	return result{"submitted": len(p.batch[s.As]), "error_count": len(problems), "errors": problems}, nil
}

func (p *player) ask(ctx context.Context, s step) (any, error) {
	prompt, err := p.client.Ask(ctx, openruntime.AIRequest{Prompt: s.Prompt, Parameters: s.Parameters, Name: &p.mark})
	if err != nil {
		return nil, err
	}
	var all strings.Builder
	for piece, err := range prompt.Text(ctx) {
		if err != nil {
			return nil, err
		}
		all.WriteString(piece)
	}
	answer, err := prompt.Answer(ctx)
	if err != nil {
		return nil, err
	}
	return result{"status": prompt.Record().Status, "text_is_result": all.String() == answer.Text}, nil
}

func convert[T openruntime.Number](s step) (*openruntime.Tensor, error) {
	data := make([]T, len(s.Data))
	for i, value := range s.Data {
		data[i] = T(value)
	}
	return openruntime.NewTensor(s.Dtype, s.Shape, data)
}

func tensorOf(s step) (*openruntime.Tensor, error) {
	switch s.Dtype {
	case "float64":
		return convert[float64](s)
	case "int64":
		return convert[int64](s)
	case "bool":
		return convert[uint8](s)
	case "bfloat16":
		return convert[uint16](s)
	}
	return convert[float32](s)
}

func elements(tensor *openruntime.Tensor) (any, error) {
	switch tensor.Dtype {
	case "float64":
		return openruntime.Elements[float64](tensor)
	case "int64":
		return openruntime.Elements[int64](tensor)
	case "bool":
		found, err := openruntime.Elements[uint8](tensor)
		numbers := make([]int, len(found)) // JSON has bytes as base64
		for i, value := range found {
			numbers[i] = int(value)
		}
		return numbers, err
	case "bfloat16":
		return openruntime.Elements[uint16](tensor)
	}
	return openruntime.Elements[float32](tensor)
}

func (p *player) roundTrip(ctx context.Context, s step) (any, error) {
	tensor, err := tensorOf(s)
	if err != nil {
		return nil, err
	}
	id := "round-trip-" + rand.Text()
	if _, err = p.client.PutArray(ctx, id, tensor); err != nil {
		return nil, err
	}
	found, err := p.client.GetArray(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, err = p.client.DeleteArray(ctx, id); err != nil {
		return nil, err
	}
	data, err := elements(found)
	return result{"dtype": found.Dtype, "shape": found.Shape, "data": data}, err
}

func (p *player) reserve(ctx context.Context, s step) (any, error) {
	var request openruntime.ArrayRequest
	encoded, _ := json.Marshal(result{"shape": s.Shape, "dtype": s.Dtype})
	if err := json.Unmarshal(encoded, &request); err != nil {
		return nil, err
	}
	array, err := p.client.ReserveArray(ctx, request)
	if err == nil {
		p.ids[s.As] = array.ID
	}
	return array, err
}

// listener collects events in the background.
type listener struct {
	mutex            sync.Mutex
	completed, types map[string]bool
	gap              bool
	stop             context.CancelFunc
	done             chan struct{}
}

func (l *listener) start(c *openruntime.Client, topics []openruntime.Topic) error {
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.done = stop, make(chan struct{})
	first := make(chan error, 1)
	go func() {
		defer close(l.done)
		for event, err := range c.Events(ctx, openruntime.EventOptions{Topics: topics}) {
			if err == nil {
				err = l.take(event)
			}
			select {
			case first <- err:
			default:
			}
		}
	}()
	return <-first
}

func (l *listener) take(event *openruntime.Event) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.types[event.Type] = true
	l.gap = l.gap || event.Gap
	if event.Type != "task_update" {
		return nil
	}
	task, err := openruntime.Decode[openruntime.TaskNews](event)
	if task.Status == openruntime.TaskStateCompleted {
		l.completed[task.TaskID] = true
	}
	return err
}

func (p *player) heard(s step) (any, error) {
	l := p.listener
	count, missing, gap := 0, []string{}, false
	for end := time.Now().Add(longestListening); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		l.mutex.Lock()
		count, missing, gap = 0, []string{}, l.gap
		for _, name := range s.Completed {
			if l.completed[p.id(name)] {
				count++
			}
		}
		for _, kind := range s.Types {
			if !l.types[kind] {
				missing = append(missing, kind)
			}
		}
		l.mutex.Unlock()
		if count == len(s.Completed) && len(missing) == 0 && (gap || !s.Gap) {
			break
		}
	}
	l.stop()
	<-l.done
	return result{"completed": count, "gap": gap, "missing_types": missing}, nil
}

var kinds = []struct {
	err  error
	name string
}{
	{openruntime.ErrMalformedRequest, "malformed_request"},
	{openruntime.ErrNotAllowed, "not_allowed"},
	{openruntime.ErrNotFound, "not_found"},
	{openruntime.ErrConflict, "conflict"},
	{openruntime.ErrBodyTooLarge, "body_too_large"},
	{openruntime.ErrInvalidRequest, "invalid_request"},
	{openruntime.ErrRateLimited, "rate_limited"},
	{openruntime.ErrUnavailable, "unavailable"},
	{openruntime.ErrWorkerDied, "worker_died"},
	{openruntime.ErrTaskFailed, "task_failed"},
	{openruntime.ErrTaskCancelled, "task_cancelled"},
	{openruntime.ErrTaskTimedOut, "task_timed_out"},
	{openruntime.ErrTaskInterrupted, "task_interrupted"},
	{context.DeadlineExceeded, "aborted"},
}

func problem(err error) result {
	found := result{"error": "unknown", "message": err.Error()}
	for _, kind := range kinds {
		if errors.Is(err, kind.err) {
			found["error"] = kind.name
			break
		}
	}
	var lost *openruntime.ConnectionError
	if errors.As(err, &lost) {
		found["error"] = "connection"
	}
	var refused *openruntime.APIError
	if errors.As(err, &refused) {
		fields := []string{}
		for _, detail := range refused.Details {
			fields = append(fields, detail.Field)
		}
		found["status"], found["code"], found["fields"] = refused.Status, refused.Code, fields
		if refused.RetryAfter > 0 {
			found["retry_after"] = refused.RetryAfter.Seconds()
		}
	}
	var ended *openruntime.TaskError
	if errors.As(err, &ended) {
		found["task_status"] = ended.Task.Status
		if ended.Task.Failure != nil {
			found["type"] = ended.Task.Failure.Type
		}
	}
	return found
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var order struct {
			URL, Token, Mark string
			Steps            []step
		}
		if err := json.Unmarshal(line, &order); err != nil {
			panic(err)
		}
		client := openruntime.New(openruntime.Options{BaseURL: order.URL, Token: order.Token})
		p := &player{client: client, mark: order.Mark, ids: map[string]string{}, batch: map[string][]string{}}
		results := []any{}
		for _, s := range order.Steps {
			ctx, stop := context.Background(), func() {}
			if s.AbortS > 0 {
				ctx, stop = context.WithTimeout(ctx, time.Duration(s.AbortS*float64(time.Second)))
			}
			found, err := p.play(ctx, s)
			stop()
			if err != nil {
				found = problem(err)
			}
			results = append(results, found)
		}
		encoded, err := json.Marshal(results)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(encoded))
	}
}
