package openruntime

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
)

const (
	safetensors = "application/vnd.safetensors"
	// transfer is the time for an array or a payload.
	transfer = 10 * time.Minute
)

// Tensor is an array: its dtype as in the API, its shape, and its elements as little-endian bytes in C order.
type Tensor struct {
	Dtype string
	Shape []int
	Data  []byte
}

// Number is a type of elements. Bits of float16 and bfloat16 are uint16, bool is uint8 of 0 and 1, complex64 is pairs of float32.
type Number interface {
	float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64
}

// dtypes by code in the file.
var dtypes = map[string]string{
	"F32": "float32", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
	"U32": "uint32", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "C64": "complex64",
}

// others are the dtypes, besides its own, whose elements are of a type.
var others = map[string][]string{"uint16": {"float16", "bfloat16"}, "uint8": {"bool"}, "float32": {"complex64"}}

func fits[T Number](dtype string) bool {
	var zero T
	own := fmt.Sprintf("%T", zero)
	return dtype == own || slices.Contains(others[own], dtype)
}

// NewTensor returns an array of these elements. An empty dtype is that of the elements.
func NewTensor[T Number](dtype string, shape []int, data []T) (*Tensor, error) {
	var zero T
	if dtype == "" {
		dtype = fmt.Sprintf("%T", zero)
	}
	size := 1
	for _, length := range shape {
		size *= length
	}
	if dtype == "complex64" {
		size *= 2
	}
	if !fits[T](dtype) || size != len(data) {
		return nil, fmt.Errorf("%d elements of %T do not fill the shape %v of %s", len(data), zero, shape, dtype)
	}
	encoded, err := binary.Append(nil, binary.LittleEndian, data)
	return &Tensor{dtype, shape, encoded}, err
}

// Elements returns the elements of an array.
func Elements[T Number](tensor *Tensor) ([]T, error) {
	var zero T
	if !fits[T](tensor.Dtype) {
		return nil, fmt.Errorf("the elements are %s, not %T", tensor.Dtype, zero)
	}
	found := make([]T, len(tensor.Data)/binary.Size(zero))
	_, err := binary.Decode(tensor.Data, binary.LittleEndian, found)
	return found, err
}

type fileEntry struct {
	Dtype   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// file returns the safetensors file of the array.
func (t *Tensor) file() ([]byte, error) {
	for code, dtype := range dtypes {
		if dtype != t.Dtype {
			continue
		}
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		header, err := json.Marshal(map[string]fileEntry{"array": {code, shape, [2]int{0, len(t.Data)}}})
		if err != nil {
			return nil, err
		}
		header = append(header, bytes.Repeat([]byte(" "), (8-len(header)%8)%8)...)
		start := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		return slices.Concat(start, header, t.Data), nil
	}
	return nil, fmt.Errorf("unknown dtype %q", t.Dtype)
}

var errNoArray = errors.New("the file has no array of a known dtype")

func tensorOf(file []byte) (*Tensor, error) {
	if len(file) < 8 {
		return nil, errNoArray
	}
	length := binary.LittleEndian.Uint64(file)
	file = file[8:]
	if length > uint64(len(file)) {
		return nil, errNoArray
	}
	var header map[string]json.RawMessage
	if err := json.Unmarshal(file[:length], &header); err != nil {
		return nil, errors.Join(errNoArray, err)
	}
	file = file[length:]
	delete(header, "__metadata__")
	for _, raw := range header {
		var entry fileEntry
		if err := json.Unmarshal(raw, &entry); err != nil {
			return nil, errors.Join(errNoArray, err)
		}
		start, end := entry.Offsets[0], entry.Offsets[1]
		if dtype := dtypes[entry.Dtype]; dtype != "" && 0 <= start && start <= end && end <= len(file) {
			return &Tensor{dtype, entry.Shape, file[start:end]}, nil
		}
	}
	return nil, errNoArray
}

func arrayPath(id string) string { return "/arrays/" + url.PathEscape(id) }

// PutArray uploads an array under a name, or into the space reserved for an id. Parameters of tasks refer to it as {"array": id}.
func (c *Client) PutArray(ctx context.Context, id string, tensor *Tensor) (*ArrayInfo, error) {
	file, err := tensor.file()
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {safetensors}}
	return do[ArrayInfo](ctx, c, call{method: "PUT", path: arrayPath(id), header: header, body: file, wait: transfer})
}

// GetArray downloads an array. Elements returns its elements.
func (c *Client) GetArray(ctx context.Context, id string) (*Tensor, error) {
	header := http.Header{"Accept": {safetensors}}
	_, file, err := c.send(ctx, call{method: "GET", path: arrayPath(id), header: header, wait: transfer}, false)
	if err != nil {
		return nil, err
	}
	return tensorOf(file)
}

// ArrayInfo returns shape, dtype and size of an array.
func (c *Client) ArrayInfo(ctx context.Context, id string) (*ArrayInfo, error) {
	return get[ArrayInfo](ctx, c, arrayPath(id), nil)
}

// Arrays returns all arrays, newest first, with the used and the allowed bytes.
func (c *Client) Arrays(ctx context.Context) (*ArrayPage, error) {
	return get[ArrayPage](ctx, c, "/arrays", nil)
}

// ReserveArray reserves space for an array, to be filled by PutArray.
func (c *Client) ReserveArray(ctx context.Context, request ArrayRequest) (*ArrayInfo, error) {
	return do[ArrayInfo](ctx, c, call{method: "POST", path: "/arrays", in: request, once: true})
}

// MarkArrayReady marks an array as complete that this program wrote into the file Path.
func (c *Client) MarkArrayReady(ctx context.Context, id string) (*ArrayInfo, error) {
	return do[ArrayInfo](ctx, c, call{method: "POST", path: arrayPath(id) + "/ready", in: struct{}{}, once: true})
}

// DeleteArray deletes an array.
func (c *Client) DeleteArray(ctx context.Context, id string) (*ArrayInfo, error) {
	return do[ArrayInfo](ctx, c, call{method: "DELETE", path: arrayPath(id), once: true})
}
