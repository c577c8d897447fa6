// Command cableload contains the clients of the fan-out benchmark: connections to an Action Cable server, each subscribed
// to one stream. It reads one command per line, and answers each with a line of JSON:
//
//	{"do": "connect", "count": 1000}                          open more connections, and subscribe them
//	{"do": "post", "messages": 60, "rate": 20, "post": URL}   broadcast by HTTP, and count the deliveries
//	{"do": "expect"}, {"do": "await", "messages": 60}         count the deliveries of broadcasts between the two
//	{"do": "close"}                                           close all connections
//
// It is a separate process, so its CPU time does not count for the server. But both share the cores of the machine, so
// only the CPU time of the server is meaningful, and wall times are not.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	address    = flag.String("url", "", "URL of the server: ws://127.0.0.1:8000/cable")
	protocol   = flag.String("protocol", "actioncable-v1-ext-json", "the subprotocol to offer")
	identifier = flag.String("identifier", `{"channel":"BenchChannel","stream":"bench%d"}`, "the identifier; %d is the number of the stream, %c that of the connection")
	streams    = flag.Int("streams", 1, "number of streams; connection i subscribes to stream i % streams")
	compress   = flag.Bool("compress", false, "offer permessage-deflate, which the server must accept")
	sources    = flag.Int("sources", 4, "number of loopback addresses to connect from: one has too few ports for many connections")
)

const (
	dialers  = 50 // connections that are opened at the same time
	patience = 20 * time.Second
	silence  = 4 * time.Second       // after this time without a delivery, the missing ones count as lost
	step     = 50 * time.Microsecond // the resolution of latencies
	steps    = 400_000               // the number of steps: 20 s
)

type command struct {
	Do       string  `json:"do"`
	Count    int     `json:"count"`
	Cookie   string  `json:"cookie"`
	Messages int     `json:"messages"`
	First    int     `json:"first"` // the number of the first message
	Rate     float64 `json:"rate"`  // broadcasts per second; 0: as fast as posts are answered
	Size     int     `json:"size"`  // bytes of padding in each message
	Post     string  `json:"post"`
	Key      string  `json:"key"`
}

type connection struct {
	number   int
	stream   int
	socket   net.Conn
	deflated *inflater
}

var (
	connections []*connection
	ended       sync.WaitGroup

	// Counters of deliveries between `expect` and `await`.
	delivered, bytesRead, wireRead, disordered, pings atomic.Int64
	latencies                                         [steps]atomic.Int32
)

// dial opens a WebSocket. It returns the socket, a reader with the data that already arrived, and, with -compress, the
// decompressor of messages.
func dial(number int, cookie string) (net.Conn, *bufio.Reader, *inflater, error) {
	host, path, _ := strings.Cut(strings.TrimPrefix(*address, "ws://"), "/")
	dialer := net.Dialer{
		Timeout:   patience,
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+number%*sources))},
	}
	socket, err := dialer.Dial("tcp", host)
	if err != nil {
		return nil, nil, nil, err
	}
	request := "GET /" + path + " HTTP/1.1\r\nHost: " + host + "\r\nOrigin: http://" + host +
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13" +
		"\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: " + *protocol + "\r\n"
	if cookie != "" {
		request += "Cookie: " + cookie + "\r\n"
	}
	if *compress {
		request += "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
	}
	if _, err = socket.Write([]byte(request + "\r\n")); err != nil {
		return nil, nil, nil, err
	}
	reader := bufio.NewReaderSize(socket, 1024)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, nil, fmt.Errorf("answered %s", response.Status)
	}
	if !*compress {
		return socket, reader, nil, nil
	}
	agreed := response.Header.Get("Sec-WebSocket-Extensions")
	if !strings.HasPrefix(agreed, "permessage-deflate") {
		return nil, nil, nil, fmt.Errorf("agreed to %q", agreed)
	}
	return socket, reader, &inflater{takeover: !strings.Contains(agreed, "server_no_context_takeover")}, nil
}

// readFrame reads one frame, which is a whole message. Frames of servers are not masked. The last result but one is the
// size of the frame in bytes, with its header.
func readFrame(reader *bufio.Reader, buffer []byte) (opcode byte, deflated bool, payload []byte, wire int, err error) {
	var head [8]byte
	if _, err = io.ReadFull(reader, head[:2]); err != nil {
		return
	}
	opcode, deflated = head[0]&0x0f, head[0]&0x40 != 0
	size := uint64(head[1])
	more := map[uint64]int{126: 2, 127: 8}[size]
	if more > 0 {
		if _, err = io.ReadFull(reader, head[:more]); err != nil {
			return
		}
		size = 0
		for _, digit := range head[:more] {
			size = size<<8 | uint64(digit)
		}
	}
	if uint64(cap(buffer)) < size {
		buffer = make([]byte, size)
	}
	payload, wire = buffer[:size], 2+more+int(size)
	_, err = io.ReadFull(reader, payload)
	return
}

// writeFrame writes a small frame, masked with zeros.
func writeFrame(socket net.Conn, opcode byte, payload []byte) {
	frame := []byte{0x80 | opcode}
	if len(payload) < 126 {
		frame = append(frame, 0x80|byte(len(payload)))
	} else {
		frame = append(frame, 0x80|126, byte(len(payload)>>8), byte(len(payload)))
	}
	socket.Write(append(append(frame, 0, 0, 0, 0), payload...))
}

// number returns the integer value of a key in a JSON text, or -1 if the key is missing.
func number(text []byte, key string) int64 {
	at := bytes.Index(text, []byte(key))
	if at < 0 {
		return -1
	}
	value := int64(0)
	for _, digit := range bytes.TrimLeft(text[at+len(key):], " ") {
		if digit < '0' || digit > '9' {
			break
		}
		value = value*10 + int64(digit-'0')
	}
	return value
}

func arrived(payload []byte, wire int, sent int64, last int64) int64 {
	place := int64(time.Now().UnixNano()-sent) / int64(step)
	latencies[min(max(place, 0), steps-1)].Add(1)
	position := number(payload, `"n":`)
	if position <= last {
		disordered.Add(1)
	}
	bytesRead.Add(int64(len(payload)))
	wireRead.Add(int64(wire))
	delivered.Add(1)
	return position
}

// serve subscribes, sends the result to `ready`, and reads messages until the connection ends.
func (c *connection) serve(reader *bufio.Reader, ready chan<- error) {
	defer ended.Done()
	name := strings.NewReplacer("%d", strconv.Itoa(c.stream), "%c", strconv.Itoa(c.number)).Replace(*identifier)
	buffer := make([]byte, 1024)
	last := int64(-1)
	isReported := false
	report := func(err error) {
		if !isReported {
			isReported = true
			ready <- err
		}
	}
	for {
		opcode, deflated, payload, wire, err := readFrame(reader, buffer)
		if err == nil && deflated {
			payload, err = c.deflated.inflate(payload)
		}
		switch {
		case err != nil:
			report(err)
			return
		case opcode == 8:
			report(fmt.Errorf("closed: %q", payload))
			return
		case opcode == 9:
			writeFrame(c.socket, 10, payload)
			continue
		}
		if sent := number(payload, `"ts":`); sent >= 0 {
			last = arrived(payload, wire, sent, last)
			continue
		}
		text := string(payload)
		switch {
		case strings.Contains(text, `"ping"`):
			pings.Add(1)
		case strings.Contains(text, `"welcome"`):
			subscribe, _ := json.Marshal(map[string]string{"command": "subscribe", "identifier": name})
			writeFrame(c.socket, 1, subscribe)
		case strings.Contains(text, `"confirm_subscription"`):
			report(nil)
		case strings.Contains(text, `"reject_subscription"`), strings.Contains(text, `"disconnect"`):
			report(fmt.Errorf("%s", text))
		}
	}
}

func connect(count int, cookie string) map[string]any {
	ready := make(chan error, count)
	slots := make(chan bool, dialers)
	var mutex sync.Mutex
	base := len(connections)
	started := time.Now()
	for i := 0; i < count; i++ {
		go func(number int) {
			slots <- true
			socket, reader, deflated, err := dial(number, cookie)
			if err != nil {
				<-slots
				ready <- err
				return
			}
			c := &connection{number, number % *streams, socket, deflated}
			mutex.Lock()
			connections = append(connections, c)
			mutex.Unlock()
			ended.Add(1)
			subscribed := make(chan error, 1)
			go c.serve(reader, subscribed)
			err = <-subscribed
			<-slots
			ready <- err
		}(base + i)
	}
	failed, first := 0, ""
	for i := 0; i < count; i++ {
		if err := <-ready; err != nil {
			failed++
			first = err.Error()
		}
	}
	return map[string]any{
		"connected": count - failed, "failed": failed, "error": first, "seconds": time.Since(started).Seconds(),
	}
}

func reset() {
	delivered.Store(0)
	bytesRead.Store(0)
	wireRead.Store(0)
	disordered.Store(0)
	pings.Store(0)
	for i := range latencies {
		latencies[i].Store(0)
	}
}

// expected returns the number of deliveries of messages. Message number m goes to stream m % streams.
func expected(first, messages int) int64 {
	subscribers := make([]int64, *streams)
	for _, c := range connections {
		subscribers[c.stream]++
	}
	total := int64(0)
	for m := first; m < first+messages; m++ {
		total += subscribers[m%*streams]
	}
	return total
}

func await(first, messages int) map[string]any {
	wanted := expected(first, messages)
	seen, at := int64(-1), time.Now()
	for delivered.Load() < wanted && time.Since(at) < silence {
		time.Sleep(2 * time.Millisecond)
		if now := delivered.Load(); now != seen {
			seen, at = now, time.Now()
		}
	}
	count := delivered.Load()
	result := map[string]any{
		"delivered": count, "expected": wanted, "disordered": disordered.Load(), "pings": pings.Load(),
		"frame_bytes": float64(bytesRead.Load()) / float64(max(count, 1)),
		"wire_bytes":  float64(wireRead.Load()) / float64(max(count, 1)),
	}
	for name, share := range map[string]float64{"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1} {
		result[name] = quantile(share, count)
	}
	return result
}

func quantile(share float64, count int64) float64 {
	rank, seen := int64(share*float64(count-1)), int64(0)
	for place := range latencies {
		seen += int64(latencies[place].Load())
		if seen > rank {
			return float64(place) * step.Seconds() * 1000
		}
	}
	return 0
}

func post(c command) map[string]any {
	client := &http.Client{Timeout: patience}
	pad := strings.Repeat("x", c.Size)
	failed, problem := 0, ""
	started := time.Now()
	for m := c.First; m < c.First+c.Messages; m++ {
		data := fmt.Sprintf(`{"n":%d,"ts":%d,"pad":"%s"}`, m, time.Now().UnixNano(), pad)
		body, _ := json.Marshal(map[string]string{"stream": fmt.Sprintf("bench%d", m%*streams), "data": data})
		request, _ := http.NewRequest("POST", c.Post, bytes.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		if c.Key != "" {
			request.Header.Set("Authorization", "Bearer "+c.Key)
		}
		response, err := client.Do(request)
		if err != nil {
			failed, problem = failed+1, err.Error()
		} else {
			if response.StatusCode >= 300 {
				failed, problem = failed+1, response.Status
			}
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		if c.Rate > 0 {
			time.Sleep(time.Until(started.Add(time.Duration(float64(m-c.First+1) / c.Rate * float64(time.Second)))))
		}
	}
	result := await(c.First, c.Messages)
	result["posts_failed"], result["error"] = failed, problem
	return result
}

func closeAll() {
	for _, c := range connections {
		c.socket.Close()
	}
	ended.Wait()
	connections = nil
}

func main() {
	flag.Parse()
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var c command
		var answer map[string]any
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		switch c.Do {
		case "connect":
			answer = connect(c.Count, c.Cookie)
		case "post":
			reset()
			answer = post(c)
		case "expect":
			reset()
			answer = map[string]any{}
		case "await":
			answer = await(c.First, c.Messages)
		case "close":
			closeAll()
			answer = map[string]any{}
		}
		answers.Encode(answer)
	}
}
