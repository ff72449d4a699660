package openruntime

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func served(t *testing.T, options Options, serve http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	options.BaseURL = server.URL + "/"
	return New(options)
}

func TestTokenIsRequestedForEachRequestAndVersionIsKnown(t *testing.T) {
	tokens, calls := []string{"one", "two"}, 0
	source := func(context.Context) (string, error) { calls++; return tokens[calls-1], nil }
	var sent []string
	client := served(t, Options{TokenSource: source}, func(w http.ResponseWriter, r *http.Request) {
		sent = append(sent, r.Header.Get("Authorization"))
		w.Header().Set("OpenRuntime-Version", "2.1.0")
		_, _ = io.WriteString(w, `{"status": "healthy", "a_new_field": {}}`)
	})
	for range 2 {
		if health, err := client.Health(context.Background()); err != nil || health.Status != "healthy" {
			t.Fatal(health, err)
		}
	}
	if !reflect.DeepEqual(sent, []string{"Bearer one", "Bearer two"}) || client.ServerVersion() != "2.1.0" {
		t.Fatal(sent, client.ServerVersion())
	}
}

func TestSlowResponseIsConnectionError(t *testing.T) {
	client := served(t, Options{Timeout: 20 * time.Millisecond, MaxRetries: -1}, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	_, err := client.Health(context.Background())
	var lost *ConnectionError
	if !errors.As(err, &lost) || !errors.Is(err, errTooLate) {
		t.Fatal(err)
	}
}

func TestOtherServerIsNamed(t *testing.T) {
	client := served(t, Options{}, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") })
	if _, err := client.Health(context.Background()); err == nil || !strings.Contains(err.Error(), "is not an OpenRuntime server") {
		t.Fatal(err)
	}
}

func TestRequestThatIsNotRepeatableIsSentOnce(t *testing.T) {
	var sent atomic.Int32
	client := served(t, Options{}, func(w http.ResponseWriter, _ *http.Request) {
		sent.Add(1)
		panic(http.ErrAbortHandler)
	})
	_, err := client.Handle("t").Purge(context.Background())
	var lost *ConnectionError
	if !errors.As(err, &lost) || sent.Load() != 1 {
		t.Fatal(sent.Load(), err)
	}
}

func TestCauseOfContextIsReturned(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if _, err := New(Options{}).Run(ctx, TaskRequest{Operation: "compute"}); !errors.Is(err, cause) {
		t.Fatal(err)
	}
}

func TestKindsOfErrors(t *testing.T) {
	died := &TaskError{&Task{Status: TaskStateFailed, Failure: &Failure{Kind: FailureKindWorkerDied}}}
	if !errors.Is(died, ErrWorkerDied) || !errors.Is(died, ErrTaskFailed) || errors.Is(died, ErrTaskCancelled) {
		t.Fatal(died.Unwrap())
	}
	for status, kind := range byStatus {
		if !errors.Is(&APIError{Status: status}, kind) {
			t.Fatal(status)
		}
	}
}

func TestServerSentEvents(t *testing.T) {
	var found []string
	heard := 0
	for event, data := range serverSentEvents(strings.NewReader("event: token\r\nid: 1\r\ndata: é\r\n\r\n: comment\n\ndata: a\ndata:b\n\nevent: cut"), func() { heard++ }) {
		found = append(found, event+"="+string(data))
	}
	if !reflect.DeepEqual(found, []string{"token=é", "message=a\nb"}) || heard == 0 {
		t.Fatal(found, heard)
	}
}

func TestArrays(t *testing.T) {
	if _, err := NewTensor("", []int{2, 2}, []float32{1}); err == nil {
		t.Fatal("a shape that does not fit")
	}
	if _, err := NewTensor("int8", []int{1}, []float32{1}); err == nil {
		t.Fatal("a dtype that does not fit")
	}
	scalar, err := NewTensor("bfloat16", nil, []uint16{0x3f80})
	if err != nil {
		t.Fatal(err)
	}
	file, err := scalar.file()
	if err != nil || len(file)%8 != 2 {
		t.Fatal(len(file), err)
	}
	back, err := tensorOf(file)
	if err != nil || back.Dtype != "bfloat16" || len(back.Shape) != 0 {
		t.Fatal(back, err)
	}
	if bits, err := Elements[uint16](back); err != nil || bits[0] != 0x3f80 {
		t.Fatal(bits, err)
	}
	if _, err := Elements[float32](back); err == nil {
		t.Fatal("elements of another type")
	}
	for _, broken := range []string{"", "\x09\x00\x00\x00\x00\x00\x00\x00{}", "\x02\x00\x00\x00\x00\x00\x00\x00{}", "\x01\x00\x00\x00\x00\x00\x00\x00{"} {
		if _, err := tensorOf([]byte(broken)); !errors.Is(err, errNoArray) {
			t.Fatal(broken, err)
		}
	}
}
