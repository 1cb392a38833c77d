package testenv

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// TestTCPProxy talks to an echo through a proxy that loses everything for a while: what
// was lost never arrives, and its connection is closed afterwards.
func TestTCPProxy(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _, _ = io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { echo.Close(); serving.Wait() })
	for name, proxy := range map[string]*TCPProxy{
		"":             StartTCPProxy(t, echo.Addr().String()),
		"m0.test:2380": startConnectProxy(t, map[string]string{"m0.test:2380": echo.Addr().String()}),
	} {
		c := proxyTo(t, proxy, name)
		if err := answers(c, "one", time.Minute); err != nil {
			t.Fatal(err)
		}
		proxy.Block("elsewhere:1")
		if err := answers(c, "two", time.Minute); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			proxy.Block()
		} else {
			proxy.Block(name)
		}
		if answers(c, "three", 200*time.Millisecond) == nil {
			t.Fatal("an answer passes a blocked proxy")
		}
		proxy.Unblock()
		if answers(c, "four", time.Minute) == nil {
			t.Fatal("a connection goes on that has lost something")
		}
		if err := answers(proxyTo(t, proxy, name), "five", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

// proxyTo connects by way of a proxy, with CONNECT where a name is given.
func proxyTo(t *testing.T, proxy *TCPProxy, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if name != "" {
		fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", name)
		want := "HTTP/1.1 200 OK\r\n\r\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("CONNECT: %q, %v", got, err)
		}
	}
	return c
}

// answers says a word and wants to hear it.
func answers(c net.Conn, word string, within time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := fmt.Fprintln(c, word); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && got != word+"\n" {
		err = fmt.Errorf("%q for %q", got, word)
	}
	return err
}
