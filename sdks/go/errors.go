package openruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Kinds of APIError, for errors.Is. The code of the error is more precise.
var (
	ErrMalformedRequest = errors.New("the server cannot read the request")
	ErrNotAllowed       = errors.New("token or permission missing")
	ErrNotFound         = errors.New("unknown task, array, session, model or conversation")
	ErrConflict         = errors.New("the state of the task or array does not allow the request")
	ErrBodyTooLarge     = errors.New("the body exceeds the server's limit")
	ErrInvalidRequest   = errors.New("invalid values")
	ErrRateLimited      = errors.New("too many requests")
	ErrUnavailable      = errors.New("temporarily unavailable")
)

// Kinds of TaskError, for errors.Is. A worker that died is also a failure.
var (
	ErrTaskFailed      = errors.New("the task failed")
	ErrWorkerDied      = fmt.Errorf("the worker process died: %w", ErrTaskFailed)
	ErrTaskCancelled   = errors.New("the task was cancelled")
	ErrTaskTimedOut    = errors.New("the task ran longer than its timeout")
	ErrTaskInterrupted = errors.New("the server ended while the task ran")
)

var byStatus = map[int]error{
	400: ErrMalformedRequest,
	401: ErrNotAllowed,
	403: ErrNotAllowed,
	404: ErrNotFound,
	409: ErrConflict,
	413: ErrBodyTooLarge,
	422: ErrInvalidRequest,
	429: ErrRateLimited,
	503: ErrUnavailable,
}

// ConnectionError reports that the server does not respond, or that its response was cut off.
type ConnectionError struct {
	URL string
	Err error
}

func (e *ConnectionError) Error() string { return fmt.Sprintf("%s does not respond: %v", e.URL, e.Err) }

// Unwrap returns the cause.
func (e *ConnectionError) Unwrap() error { return e.Err }

// APIError is an error response of the server.
type APIError struct {
	// Status is the HTTP status; for an entry of a batch, that of an equivalent single request.
	Status int
	// Code is machine-readable, such as queue_full; empty if a proxy or an older server responded.
	Code    string
	Message string
	// Details lists the invalid fields.
	Details []Detail
	// RetryAfter is the time after which a retry can succeed; 0 if it cannot.
	RetryAfter time.Duration
}

func (e *APIError) Error() string { return e.Message }

// Unwrap returns the kind of the error, such as ErrNotFound.
func (e *APIError) Unwrap() error { return byStatus[e.Status] }

// TaskError reports a task that did not complete. Task is its record.
type TaskError struct{ Task *Task }

func (e *TaskError) Error() string {
	if e.Task.Error != "" {
		return e.Task.Error
	}
	return e.Task.TaskID + ": " + string(e.Task.Status)
}

// Unwrap returns the kind of the error, such as ErrTaskCancelled.
func (e *TaskError) Unwrap() error {
	switch e.Task.Status {
	case TaskStateCancelled:
		return ErrTaskCancelled
	case TaskStateTimedOut:
		return ErrTaskTimedOut
	case TaskStateInterrupted:
		return ErrTaskInterrupted
	}
	if e.Task.Failure != nil && e.Task.Failure.Kind == FailureKindWorkerDied {
		return ErrWorkerDied
	}
	return ErrTaskFailed
}

func responseError(response *http.Response, body []byte) *APIError {
	found := &APIError{Status: response.StatusCode}
	if seconds, err := strconv.ParseFloat(response.Header.Get("Retry-After"), 64); err == nil && seconds > 0 {
		found.RetryAfter = time.Duration(seconds * float64(time.Second))
	}
	var envelope struct {
		Error string
		Data  *ErrorData
	}
	if json.Unmarshal(body, &envelope) != nil || envelope.Error == "" {
		found.Message = fmt.Sprintf("%s responded with %s, without an error of OpenRuntime", response.Request.URL, response.Status)
		return found
	}
	found.Message = envelope.Error
	if envelope.Data != nil {
		found.Code, found.Details = string(envelope.Data.Code), envelope.Data.Details
	}
	return found
}
