package testenv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	kubeletIdle   = 5 * time.Minute
	kubeletLogGap = 50 * time.Millisecond // between the lines of a container that is followed
)

// StubKubelet is a node: a Node object, and the kubelet that a real API server turns to
// for logs, exec, attach and port-forward of the pods on it. It streams by the server
// that container runtimes use, k8s.io/cri-streaming, and knows one kind of container,
// which runs in this process; see container. A pod's ports are those of 127.0.0.1.
type StubKubelet struct {
	// Node is the name of the Node object.
	Node string

	api  kubernetes.Interface
	ends context.Context // when the test does

	mu      sync.Mutex
	running []string // commands, logs that are followed and forwarded connections
	pods    []corev1.Pod
	files   map[string][]byte // of all containers together, by absolute path
	sizes   []remotecommand.TerminalSize
}

// StartStubKubelet starts a kubelet that lets in only the API server k, by its client
// certificate, and registers its Node there. It ends with the test.
func StartStubKubelet(t testing.TB, k *KubeAPIServer) *StubKubelet {
	t.Helper()
	api, err := kubernetes.NewForConfig(k.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	ends, end := context.WithCancel(context.Background())
	s := &StubKubelet{Node: "stub", api: api, ends: ends, files: map[string][]byte{}}
	server := httptest.NewUnstartedServer(s.handler())
	server.TLS = kubeletTLS(t, k.ca)
	server.StartTLS()
	t.Cleanup(func() { end(); server.CloseClientConnections(); server.Close() })
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.Node}}
	if node, err = api.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatalf("register a node: %v", err)
	}
	node.Status = corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(server.Listener.Addr().(*net.TCPAddr).Port)}},
		Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "StubKubelet"}},
	}
	if _, err := api.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("set the status of a node: %v", err)
	}
	return s
}

// kubeletTLS wants a client certificate of ca.
func kubeletTLS(t testing.TB, ca *CA) *tls.Config {
	t.Helper()
	certFile, keyFile := ca.Issue(t, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
}

// AddPod creates a pod with one container, main, that runs on the node at once.
func (s *StubKubelet) AddPod(t testing.TB, namespace, name string) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: s.Node, TerminationGracePeriodSeconds: new(int64), // nobody reports its end
			Containers: []corev1.Container{{Name: "main", Image: "stub.example/main:1", Stdin: true, TTY: false, Ports: []corev1.ContainerPort{{ContainerPort: 80}}}},
		},
	}
	pod, err := s.api.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create pod %s: %v", name, err)
	}
	now := metav1.Now()
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "127.0.0.1", PodIP: "10.244.0.7", PodIPs: []corev1.PodIP{{IP: "10.244.0.7"}}, StartTime: &now,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "main", Ready: true, Image: "stub.example/main:1", ContainerID: "stub://" + name,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	if pod, err = s.api.CoreV1().Pods(namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("run pod %s: %v", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = append(s.pods, *pod)
}

// Running is the commands, logs that are followed and forwarded connections that the node
// has under way.
func (s *StubKubelet) Running() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.running)
}

// begin counts what as running until ended is called.
func (s *StubKubelet) begin(what string) (ended func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, what)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		at := slices.Index(s.running, what)
		s.running = slices.Delete(s.running, at, at+1)
	}
}

// Sizes are the terminal sizes that containers were told, in their order.
func (s *StubKubelet) Sizes() []remotecommand.TerminalSize {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sizes)
}

// File is what a container wrote, by absolute path; nil when there is none.
func (s *StubKubelet) File(path string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[path]
}

// SetFile puts a file into all containers.
func (s *StubKubelet) SetFile(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = content
}

func (s *StubKubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: s.pods})
	})
	mux.HandleFunc("GET /stats/summary", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"node":{"nodeName":%q},"pods":[]}`, s.Node)
	})
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.serveLogs)
	const idle, creation = kubeletIdle, remotecommand.DefaultStreamCreationTimeout
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", withOptions(remotecommand.NewOptions, func(w http.ResponseWriter, r *http.Request, o *remotecommand.Options) {
		remotecommand.ServeExec(w, r, container{s}, r.PathValue("pod"), "", r.PathValue("container"), r.URL.Query()["command"], o, idle, creation, remotecommand.SupportedStreamingProtocols)
	}))
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", withOptions(remotecommand.NewOptions, func(w http.ResponseWriter, r *http.Request, o *remotecommand.Options) {
		remotecommand.ServeAttach(w, r, container{s}, r.PathValue("pod"), "", r.PathValue("container"), o, idle, creation, remotecommand.SupportedStreamingProtocols)
	}))
	mux.HandleFunc("/portForward/{namespace}/{pod}", withOptions(portforward.NewV4Options, func(w http.ResponseWriter, r *http.Request, o *portforward.V4Options) {
		portforward.ServePortForward(w, r, container{s}, r.PathValue("pod"), "", o, idle, creation, portforward.SupportedProtocols)
	}))
	return mux
}

// withOptions serves what comes with options that can be read.
func withOptions[O any](read func(*http.Request) (O, error), serve func(http.ResponseWriter, *http.Request, O)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := read(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		serve(w, r, o)
	}
}

// serveLogs writes ten lines, and where it is followed one more from time to time.
func (s *StubKubelet) serveLogs(w http.ResponseWriter, r *http.Request) {
	lines := 10
	if n, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		lines = min(n, lines)
	}
	for i := 10 - lines; i < 10; i++ {
		fmt.Fprintf(w, "%s line %d\n", r.PathValue("pod"), i)
	}
	defer s.begin("logs")()
	flusher := http.NewResponseController(w)
	for i := 10; r.FormValue("follow") == "true"; i++ {
		if err := flusher.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.ends.Done():
			return
		case <-time.After(kubeletLogGap):
		}
		if _, err := fmt.Fprintf(w, "%s line %d\n", r.PathValue("pod"), i); err != nil {
			return
		}
	}
}

// PortForward implements portforward.PortForwarder.
func (c container) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer c.kubelet.begin("port-forward")()
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("connect to the pod's port: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(c.kubelet.ends, func() { conn.Close() })()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(stream, conn)
		stream.Close()
	}()
	_, err = io.Copy(conn, stream)
	_ = conn.(*net.TCPConn).CloseWrite()
	<-back
	return err
}
