// Package ws is a WebSocket client for text messages (RFC 6455).
package ws

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10

	final    = 0x80
	masked   = 0x80
	reserved = 0x70

	normalClosure   = 1000
	noStatus        = 1005
	protocolError   = 1002
	messageTooLarge = 1009

	magic          = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	largestControl = 125
	// Largest is the size of the largest message in bytes.
	Largest = 64 << 20
)

// CloseError reports that the server has closed the connection.
type CloseError struct {
	Code   int
	Reason string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("the WebSocket was closed with code %d: %s", e.Code, e.Reason)
}

// HandshakeError is a response to the handshake with another status than 101.
type HandshakeError struct{ Status int }

func (e *HandshakeError) Error() string {
	return fmt.Sprintf("the handshake of the WebSocket failed with status %d", e.Status)
}

// Conn is a connection. One goroutine may read, while others write.
type Conn struct {
	net    net.Conn
	reader *bufio.Reader
	writes sync.Mutex
}

// Dial connects to a ws:// or wss:// address.
func Dial(ctx context.Context, address string, header http.Header, config *tls.Config) (*Conn, error) {
	to, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	port := "80"
	if to.Scheme == "wss" {
		port = "443"
	}
	if to.Port() != "" {
		port = to.Port()
	}
	host := net.JoinHostPort(to.Hostname(), port)
	var raw net.Conn
	if to.Scheme == "wss" {
		config = config.Clone()
		if config == nil {
			config = &tls.Config{}
		}
		config.NextProtos = []string{"http/1.1"}
		raw, err = (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", host)
	} else {
		raw, err = (&net.Dialer{}).DialContext(ctx, "tcp", host)
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	conn, err := handshake(raw, to, header)
	if !stop() || err != nil {
		_ = raw.Close()
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return conn, nil
}

func handshake(raw net.Conn, to *url.URL, header http.Header) (*Conn, error) {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce)
	key := base64.StdEncoding.EncodeToString(nonce)
	request := &http.Request{Method: "GET", URL: to, Host: to.Host, Header: http.Header{}}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("Upgrade", "websocket")
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Sec-WebSocket-Version", "13")
	request.Header.Set("Sec-WebSocket-Key", key)
	if err := request.Write(raw); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(raw)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return nil, &HandshakeError{response.StatusCode}
	}
	sum := sha1.Sum([]byte(key + magic))
	if response.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		return nil, errors.New("the server is not a WebSocket server: its Sec-WebSocket-Accept is wrong")
	}
	return &Conn{net: raw, reader: reader}, nil
}

// SetReadDeadline sets the time at which a read fails.
func (c *Conn) SetReadDeadline(at time.Time) error { return c.net.SetReadDeadline(at) }

// ReadMessage returns the next message, and answers pings that come before it. A *CloseError reports the end.
func (c *Conn) ReadMessage() ([]byte, error) {
	var message []byte
	fragmented := false
	for {
		head, payload, err := c.frame(Largest - len(message))
		if err != nil {
			return nil, err
		}
		switch op := head & 0x0f; op {
		case opText, opBinary, opContinuation:
			if (op == opContinuation) != fragmented {
				return nil, c.fail(protocolError, "fragments out of order")
			}
			message = append(message, payload...)
			if head&final != 0 {
				return message, nil
			}
			fragmented = true
		case opPing:
			if err := c.write(opPong, payload); err != nil {
				return nil, err
			}
		case opPong:
		case opClose:
			return nil, c.closed(payload)
		default:
			return nil, c.fail(protocolError, fmt.Sprintf("unknown opcode %d", op))
		}
	}
}

// frame returns the first byte of the next frame, and its payload of at most largest bytes.
func (c *Conn) frame(largest int) (byte, []byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.reader, head[:2]); err != nil {
		return 0, nil, err
	}
	first, size := head[0], uint64(head[1]&0x7f)
	if first&reserved != 0 || head[1]&masked != 0 {
		return 0, nil, c.fail(protocolError, "reserved bits or a mask")
	}
	if first&opClose != 0 && (first&final == 0 || size > largestControl) {
		return 0, nil, c.fail(protocolError, "a control frame that is fragmented or too large")
	}
	var err error
	switch size {
	case 126:
		_, err = io.ReadFull(c.reader, head[:2])
		size = uint64(binary.BigEndian.Uint16(head[:2]))
	case 127:
		_, err = io.ReadFull(c.reader, head[:8])
		size = binary.BigEndian.Uint64(head[:8])
	}
	if err != nil {
		return 0, nil, err
	}
	if size > uint64(largest) {
		return 0, nil, c.fail(messageTooLarge, fmt.Sprintf("a message of more than %d bytes", Largest))
	}
	payload := make([]byte, size)
	_, err = io.ReadFull(c.reader, payload)
	return first, payload, err
}

// fail closes the connection because of what the server has sent.
func (c *Conn) fail(code int, reason string) error {
	c.sendClose(code)
	_ = c.net.Close()
	return errors.New("the server violates the WebSocket protocol: " + reason)
}

// closed answers a close frame and returns its code and reason.
func (c *Conn) closed(payload []byte) error {
	if len(payload) < 2 {
		c.sendClose(normalClosure)
		return &CloseError{Code: noStatus}
	}
	code := int(binary.BigEndian.Uint16(payload))
	c.sendClose(code)
	return &CloseError{code, string(payload[2:])}
}

// WriteMessage sends a text message.
func (c *Conn) WriteMessage(message []byte) error { return c.write(opText, message) }

func (c *Conn) write(op byte, payload []byte) error {
	frame := []byte{final | op}
	switch size := len(payload); {
	case size <= largestControl:
		frame = append(frame, masked|byte(size))
	case size < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, masked|126), uint16(size))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, masked|127), uint64(size))
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:])
	frame = append(frame, mask[:]...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	c.writes.Lock()
	defer c.writes.Unlock()
	_, err := c.net.Write(frame)
	return err
}

func (c *Conn) sendClose(code int) {
	_ = c.net.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.write(opClose, binary.BigEndian.AppendUint16(nil, uint16(code)))
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.sendClose(normalClosure)
	return c.net.Close()
}
