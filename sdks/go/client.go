// Package openruntime is the client of OpenRuntime, a queue for MLX work and AI prompts.
package openruntime

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Options of a client. Zero values are the defaults.
type Options struct {
	// BaseURL is the URL below which /health responds. Default: http://localhost:8000.
	BaseURL string
	// Token of the server.
	Token string
	// TokenSource returns the current token for each request, instead of Token.
	TokenSource func(context.Context) (string, error)
	// HTTPClient sends the requests. Default: http.DefaultClient.
	HTTPClient *http.Client
	// MaxRetries of a request. Default: 2; negative: none.
	MaxRetries int
	// MaxRetryDelay is the longest Retry-After to wait for. Errors with a longer one are returned at once. Default: one minute.
	MaxRetryDelay time.Duration
	// Timeout of a response, in addition to a requested wait. Default: 30 seconds.
	Timeout time.Duration
	// MaxOffline is how long waits, streams and events try to reconnect to a lost server. Default: one minute.
	MaxOffline time.Duration
}

// Client of an OpenRuntime server. It is safe for concurrent use.
type Client struct {
	baseURL string
	options Options
	version atomic.Pointer[string]
}

// New returns a client.
func New(options Options) *Client {
	options.HTTPClient = cmp.Or(options.HTTPClient, http.DefaultClient)
	options.MaxRetries = max(0, cmp.Or(options.MaxRetries, 2))
	options.MaxRetryDelay = cmp.Or(options.MaxRetryDelay, time.Minute)
	options.Timeout = cmp.Or(options.Timeout, 30*time.Second)
	options.MaxOffline = cmp.Or(options.MaxOffline, time.Minute)
	return &Client{baseURL: trimmed(options.BaseURL), options: options}
}

// Ptr returns a pointer to a value, for optional fields.
func Ptr[T any](value T) *T { return &value }

// BaseURL returns the URL of the API.
func (c *Client) BaseURL() string { return c.baseURL }

// ServerVersion returns the version of the server from its last response, empty before the first.
func (c *Client) ServerVersion() string {
	if version := c.version.Load(); version != nil {
		return *version
	}
	return ""
}

func (c *Client) reconnection() *reconnection { return &reconnection{limit: c.options.MaxOffline} }

// get returns the JSON of a GET.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	return do[T](ctx, c, call{method: "GET", path: path, query: query})
}

// Info returns name, version and status of the service.
func (c *Client) Info(ctx context.Context) (*ServiceInfo, error) {
	return get[ServiceInfo](ctx, c, "/", nil)
}

// Health returns the health of the server.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	return get[Health](ctx, c, "/health", nil)
}

// Metrics returns the current metrics.
func (c *Client) Metrics(ctx context.Context) (*SystemMetrics, error) {
	return get[SystemMetrics](ctx, c, "/metrics", nil)
}

// HistoryQuery selects metrics over time.
type HistoryQuery struct {
	// Timeframe up to now: 5m, 15m, 1h, 6h, 24h or 7d. Default: 1h.
	Timeframe Timeframe
	// Points is the maximum number of points. Default: 300.
	Points int
	// Runtime is the id of one runtime. Default: all.
	Runtime string
}

// MetricsHistory returns the metrics over time.
func (c *Client) MetricsHistory(ctx context.Context, query HistoryQuery) (*MetricsHistory, error) {
	return get[MetricsHistory](ctx, c, "/metrics/history", values("timeframe", string(query.Timeframe), "points", query.Points, "runtime", query.Runtime))
}

// Devices returns the devices, GPUs first.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	found, err := get[DeviceList](ctx, c, "/devices", nil)
	if err != nil {
		return nil, err
	}
	return found.Devices, nil
}

// Hosts returns the other machines that run tasks.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	found, err := get[HostList](ctx, c, "/hosts", nil)
	if err != nil {
		return nil, err
	}
	return found.Hosts, nil
}

// Workers returns the worker processes.
func (c *Client) Workers(ctx context.Context) ([]Worker, error) {
	found, err := get[WorkerList](ctx, c, "/workers", nil)
	if err != nil {
		return nil, err
	}
	return found.Workers, nil
}

// Operations returns the operations with the JSON schemas of their parameters.
func (c *Client) Operations(ctx context.Context) ([]OperationInfo, error) {
	found, err := get[OperationList](ctx, c, "/operations", nil)
	if err != nil {
		return nil, err
	}
	return found.Operations, nil
}

// OpenAPI returns the OpenAPI document.
func (c *Client) OpenAPI(ctx context.Context) (json.RawMessage, error) {
	found, err := get[json.RawMessage](ctx, c, "/openapi.json", nil)
	if err != nil {
		return nil, err
	}
	return *found, nil
}

// Sessions returns the sessions, workers whose variables persist between tasks. A task with a new session starts one.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	found, err := get[SessionList](ctx, c, "/sessions", nil)
	if err != nil {
		return nil, err
	}
	return found.Sessions, nil
}

// RestartSession ends the worker of a session and its running task. The next task starts with an empty namespace.
func (c *Client) RestartSession(ctx context.Context, id string) (*Session, error) {
	return do[Session](ctx, c, call{method: "POST", path: "/sessions/" + url.PathEscape(id) + "/restart", in: struct{}{}, once: true})
}

// EndSession ends a session and its running task.
func (c *Client) EndSession(ctx context.Context, id string) (*Session, error) {
	return do[Session](ctx, c, call{method: "DELETE", path: "/sessions/" + url.PathEscape(id), once: true})
}

// Models returns the local models and the profiles of remote providers.
func (c *Client) Models(ctx context.Context) (*ModelList, error) {
	return get[ModelList](ctx, c, "/models", nil)
}

// UnloadModel unloads a model from memory and returns the names of the unloaded models.
func (c *Client) UnloadModel(ctx context.Context, name string) ([]string, error) {
	found, err := do[Unloaded](ctx, c, call{method: "DELETE", path: "/models/" + url.PathEscape(name), once: true})
	if err != nil {
		return nil, err
	}
	return found.Unloaded, nil
}
