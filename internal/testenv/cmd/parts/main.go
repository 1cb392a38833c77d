// Parts builds the programs that Tabard's tests run against, at their pinned
// versions, and says where they are. With names it builds only those; with one
// name and -q it prints the path alone.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tabard-id/tabard/internal/parts"
)

func main() {
	quiet := flag.Bool("q", false, "print paths only")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Args(), *quiet); err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string, quiet bool) error {
	if len(names) == 0 {
		names = parts.Names()
	}
	for _, name := range names {
		if !quiet {
			fmt.Printf("%-15s ", name)
		}
		start := time.Now()
		path, err := parts.Build(ctx, name, nil)
		if err != nil {
			return err
		}
		if quiet {
			fmt.Println(path)
			continue
		}
		fmt.Printf("%6.1f s  %s\n", time.Since(start).Seconds(), path)
	}
	return nil
}
