package ws

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// served returns a connection to a server that runs serve after the handshake.
func served(t *testing.T, serve func(net.Conn, *bufio.Reader)) *Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		reader := bufio.NewReader(conn)
		request, err := http.ReadRequest(reader)
		if err != nil {
			t.Error(err)
			return
		}
		if request.Header.Get("Authorization") != "Bearer x" || request.URL.RequestURI() != "/ws?topics=a" {
			t.Errorf("unexpected request %s %v", request.URL, request.Header)
		}
		sum := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + magic))
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
		serve(conn, reader)
	}()
	conn, err := Dial(context.Background(), "ws://"+listener.Addr().String()+"/ws?topics=a", http.Header{"Authorization": {"Bearer x"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); _ = listener.Close(); <-done })
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// frame returns a server's frame with the shortest length.
func frame(first byte, payload []byte) []byte {
	switch size := len(payload); {
	case size < 126:
		return append([]byte{first, byte(size)}, payload...)
	case size < 1<<16:
		return append(binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(size)), payload...)
	default:
		return append(binary.BigEndian.AppendUint64([]byte{first, 127}, uint64(size)), payload...)
	}
}

// received reads a client's frame and returns its opcode and unmasked payload.
func received(t *testing.T, reader io.Reader) (byte, []byte) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(reader, head); err != nil {
		t.Error(err)
		return 0, nil
	}
	if head[1]&masked == 0 || head[0]&final == 0 {
		t.Error("the frame is not masked or not final")
	}
	size := uint64(head[1] & 0x7f)
	switch size {
	case 126:
		more := make([]byte, 2)
		_, _ = io.ReadFull(reader, more)
		size = uint64(binary.BigEndian.Uint16(more))
	case 127:
		more := make([]byte, 8)
		_, _ = io.ReadFull(reader, more)
		size = binary.BigEndian.Uint64(more)
	}
	mask := make([]byte, 4)
	_, _ = io.ReadFull(reader, mask)
	payload := make([]byte, size)
	_, _ = io.ReadFull(reader, payload)
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0x0f, payload
}

func expect(t *testing.T, conn *Conn, message string) {
	t.Helper()
	found, err := conn.ReadMessage()
	if err != nil || string(found) != message {
		t.Fatalf("got %d bytes and %v, not %d bytes", len(found), err, len(message))
	}
}

func TestMessagesOfAllLengths(t *testing.T) {
	texts := []string{"", "a", strings.Repeat("b", 125), strings.Repeat("c", 126), strings.Repeat("d", 1<<16-1), strings.Repeat("e", 1<<16), strings.Repeat("f", 1<<20)}
	conn := served(t, func(conn net.Conn, _ *bufio.Reader) {
		for _, text := range texts {
			_, _ = conn.Write(frame(final|opText, []byte(text)))
		}
	})
	for _, text := range texts {
		expect(t, conn, text)
	}
}

func TestLengthThatCouldBeShorterIsAccepted(t *testing.T) {
	conn := served(t, func(conn net.Conn, _ *bufio.Reader) {
		_, _ = conn.Write(append(binary.BigEndian.AppendUint64([]byte{final | opText, 127}, 2), "hi"...))
	})
	expect(t, conn, "hi")
}

func TestFragmentsWithPingsBetween(t *testing.T) {
	conn := served(t, func(conn net.Conn, reader *bufio.Reader) {
		_, _ = conn.Write(bytes.Join([][]byte{
			frame(opText, []byte("one ")), frame(final|opPing, []byte("are you there")), frame(opContinuation, nil),
			frame(final|opPong, nil), frame(final|opContinuation, []byte("two")), frame(final|opText, []byte("three")),
		}, nil))
		if op, payload := received(t, reader); op != opPong || string(payload) != "are you there" {
			t.Errorf("got opcode %d with %q, not the pong", op, payload)
		}
	})
	expect(t, conn, "one two")
	expect(t, conn, "three")
}

func TestWritesAreMasked(t *testing.T) {
	texts := []string{"x", strings.Repeat("y", 200), strings.Repeat("z", 70_000)}
	done := make(chan struct{})
	conn := served(t, func(_ net.Conn, reader *bufio.Reader) {
		defer close(done)
		for _, text := range texts {
			if op, payload := received(t, reader); op != opText || string(payload) != text {
				t.Errorf("got opcode %d with %d bytes, not %d bytes", op, len(payload), len(text))
			}
		}
	})
	for _, text := range texts {
		if err := conn.WriteMessage([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	<-done
}

func TestCloseCodeAndReasonAreReturnedAndAnswered(t *testing.T) {
	for _, each := range []struct {
		payload []byte
		code    int
		reason  string
		answer  uint16
	}{
		{append(binary.BigEndian.AppendUint16(nil, 1013), "too slow"...), 1013, "too slow", 1013},
		{binary.BigEndian.AppendUint16(nil, 4003), 4003, "", 4003},
		{nil, noStatus, "", normalClosure},
	} {
		conn := served(t, func(conn net.Conn, reader *bufio.Reader) {
			_, _ = conn.Write(frame(final|opClose, each.payload))
			if op, payload := received(t, reader); op != opClose || binary.BigEndian.Uint16(payload) != each.answer {
				t.Errorf("got opcode %d with %v, not the close", op, payload)
			}
		})
		_, err := conn.ReadMessage()
		var closed *CloseError
		if !errors.As(err, &closed) || closed.Code != each.code || closed.Reason != each.reason {
			t.Fatalf("got %v, not code %d", err, each.code)
		}
	}
}

func TestProtocolViolationsAreErrors(t *testing.T) {
	for name, sent := range map[string][]byte{
		"mask":                   {final | opText, masked | 1, 0, 0, 0, 0, 'x'},
		"reserved bit":           {final | 0x40 | opText, 0},
		"continuation at start":  frame(final|opContinuation, []byte("x")),
		"new message in another": append(frame(opText, []byte("x")), frame(final|opText, []byte("y"))...),
		"fragmented ping":        frame(opPing, nil),
		"large ping":             frame(final|opPing, make([]byte, 126)),
		"unknown opcode":         frame(final|3, nil),
		"too large":              binary.BigEndian.AppendUint64([]byte{final | opText, 127}, Largest+1),
		"negative length":        binary.BigEndian.AppendUint64([]byte{final | opText, 127}, 1<<63),
	} {
		t.Run(name, func(t *testing.T) {
			conn := served(t, func(conn net.Conn, reader *bufio.Reader) {
				_, _ = conn.Write(sent)
				if op, _ := received(t, reader); op != opClose {
					t.Errorf("got opcode %d, not a close", op)
				}
			})
			if _, err := conn.ReadMessage(); err == nil || !strings.Contains(err.Error(), "violates") {
				t.Fatalf("got %v, not an error of the protocol", err)
			}
		})
	}
}

func TestFailedHandshakes(t *testing.T) {
	for answer, status := range map[string]int{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n":                                           403,
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: wrong\r\n\r\n": 0,
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if conn, err := listener.Accept(); err == nil {
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}()
		_, err = Dial(context.Background(), "ws://"+listener.Addr().String()+"/", nil, nil)
		var failed *HandshakeError
		if err == nil || errors.As(err, &failed) != (status != 0) || (status != 0 && failed.Status != status) {
			t.Fatalf("got %v", err)
		}
		_ = listener.Close()
	}
}

func TestContextEndsAHandshakeWithoutAnswer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if _, err := Dial(ctx, "ws://"+listener.Addr().String()+"/", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, not the deadline", err)
	}
}
