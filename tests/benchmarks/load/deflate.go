// The part of permessage-deflate (RFC 7692) that a client needs to read compressed messages.
package main

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"
)

// The bytes that a sender leaves out at the end of a message, and an empty last block, which Go needs to end the stream.
var ending = []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}

var readers = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}

// inflater decompresses the messages of one connection.
type inflater struct {
	takeover bool // whether a message may refer to earlier messages
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
