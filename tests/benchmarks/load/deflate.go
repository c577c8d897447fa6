// permessage-deflate, as much of it as a client needs to read what comes compressed (RFC 7692).
package main

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"
)

// What a sender left out at a message's end, and the empty last block that ends the stream for Go.
var ending = []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}

var readers = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}

// inflater reads the messages of one connection, one after the other.
type inflater struct {
	takeover bool // a message may go back to what came before it
	window   []byte
}

func (i *inflater) inflate(payload []byte) ([]byte, error) {
	reader := readers.Get().(io.ReadCloser)
	defer readers.Put(reader)
	source := io.MultiReader(bytes.NewReader(payload), bytes.NewReader(ending))
	if err := reader.(flate.Resetter).Reset(source, i.window); err != nil {
		return nil, err
	}
	message, err := io.ReadAll(reader)
	if i.takeover {
		i.window = append(i.window, message...)
		i.window = append([]byte(nil), i.window[max(len(i.window)-1<<15, 0):]...)
	}
	return message, err
}
