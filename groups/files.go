package groups

import "context"

func (s *Service) Export(ctx context.Context, a Actor, f Filter, fn func(File) error) error {
	panic("soon")
}

func (s *Service) Apply(ctx context.Context, a Actor, files []File, o ApplyOptions) ([]Applied, error) {
	panic("soon")
}
